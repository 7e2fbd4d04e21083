"""The root URLconf. The sign-in pages are in `docora.sign_in.urls`, all other pages and the API in `deliveries_app.urls`."""

from django.urls import include, path

urlpatterns = [path("accounts/", include("docora.sign_in.urls")), path("", include("deliveries_app.urls"))]
handler400 = "docora.web.errors.bad_request"
handler403 = "docora.web.errors.forbidden"
handler404 = "docora.web.errors.not_found"
handler429 = "docora.web.errors.too_many_requests"  # allauth looks for it
handler500 = "docora.web.errors.server_error"
