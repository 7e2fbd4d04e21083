"""Every address of Docora."""

from django.contrib import admin
from django.http import HttpRequest, JsonResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView

from docora import docs, metrics, openapi
from docora.errors import NOT_FOUND, json_error


@csrf_exempt  # so that it is a 404, and no question for a CSRF token, whatever the method
def unknown(request: HttpRequest) -> JsonResponse:
    return json_error(NOT_FOUND, 404)


urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("openapi.json", openapi.openapi_json, name="openapi"),
    path("api/openapi.json", openapi.openapi_json),
    path("docs/", docs.start, name="docs"),
    path("docs/webhooks/", docs.webhooks, name="docs-webhooks"),
    path("docs/api/", docs.api, name="docs-api"),
    path("docs/operations/", docs.operations, name="docs-operations"),
    path("metrics", metrics.metrics, name="metrics"),
    path("", openapi.api.urls),
    re_path(r"^api/", unknown),
    path("admin/", include("deliveries_app.urls")),
    re_path(r"^admin/api/", unknown),  # the site's catch-all would answer with a redirect to its login page
    path("admin/", admin.site.urls),
]
handler400 = "docora.errors.bad_request"
handler403 = "docora.errors.forbidden"
handler404 = "docora.errors.not_found"
handler500 = "docora.errors.server_error"
