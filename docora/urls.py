"""The root URLconf. Docora's pages and calls are in `deliveries_app.urls`."""

from django.urls import include, path

urlpatterns = [path("", include("deliveries_app.urls"))]
handler400 = "docora.web.errors.bad_request"
handler403 = "docora.web.errors.forbidden"
handler404 = "docora.web.errors.not_found"
handler500 = "docora.web.errors.server_error"
