"""The root URLconf. Docora's pages and calls are in `deliveries_app.urls`, those to sign in in `docora.sign_in.urls`."""

from django.urls import include, path

urlpatterns = [path("accounts/", include("docora.sign_in.urls")), path("", include("deliveries_app.urls"))]
handler400 = "docora.web.errors.bad_request"
handler403 = "docora.web.errors.forbidden"
handler404 = "docora.web.errors.not_found"
handler429 = "docora.web.errors.too_many_requests"  # allauth looks for it
handler500 = "docora.web.errors.server_error"
