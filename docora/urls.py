"""Every address of Docora."""

from django.contrib import admin
from django.urls import path

from docora.health import health, version

urlpatterns = [
    path("health", health),
    path("version", version),
    path("admin/", admin.site.urls),
]
handler400 = "docora.errors.bad_request"
handler403 = "docora.errors.forbidden"
handler404 = "docora.errors.not_found"
handler500 = "docora.errors.server_error"
