"""All URLs of Docora."""

from django.contrib import admin
from django.http import HttpRequest, JsonResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView

from deliveries_app.admin import live, search
from deliveries_app.api import admin_json, openapi
from deliveries_app.docs import views as docs
from deliveries_app.monitoring import metrics
from docora.web.errors import NOT_FOUND, json_error
from docora.web.security_txt import PATH, security_txt

admin.autodiscover()


@csrf_exempt  # Unknown paths are a 404 for every method, not a CSRF failure.
def not_found(request: HttpRequest) -> JsonResponse:
    return json_error(NOT_FOUND, 404)


_admin = [
    path("api/resync", admin_json.resync),
    path("api/resync/app/<slug:app_id>", admin_json.resync_app),
    path("api/repositories", admin_json.repositories),
    path("api/retry", admin_json.retry),
    path("api/retry/app/<slug:app_id>", admin_json.retry_app),
    path("api/retry/all", admin_json.retry_all),
    path("api/retry/progress/<slug:operation_id>", admin_json.progress),
    path("api/retry/cancel/<slug:operation_id>", admin_json.cancel),
    path("search/", admin.site.admin_view(search.search), name="search"),
    path("progress/<slug:operation_id>/", live.operation_progress, name="operation_progress"),
    path("progress/<slug:operation_id>/rows/", live.operation_rows, name="operation_rows"),
    path("live/", live.live_watches, name="live_watches"),
    path("live/overview/", live.live_overview, name="live_overview"),
    path("live/failed/", live.failed_syncs, name="failed_syncs"),
    path("live/checks/", live.live_checks, name="live_checks"),
    path("live/checks/<int:pk>/", live.live_check, name="live_check"),
    path("live/queue/", live.live_queue, name="live_queue"),
    path("live/app-names/", live.app_names, name="app_names"),
    path("live/watch/<int:pk>/", live.live_watch, name="live_watch"),
    path("live/delivery/<int:pk>/", live.live_delivery, name="live_delivery"),
    path("live/app/<int:pk>/", live.live_app, name="live_app"),
    path("live/app/<int:pk>/repository-names/", live.repository_names, name="repository_names"),
    path("live/<int:pk>/", live.watch_progress, name="watch_progress"),
]

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("openapi.json", openapi.openapi_json, name="openapi"),
    path("api/openapi.json", openapi.openapi_json),
    *(path(f"{name.replace('-', '/')}/", docs.page, {"name": name}, name=name) for name in docs.PAGES),
    path("metrics", metrics.metrics, name="metrics"),
    path(PATH, security_txt),
    path("", openapi.api.urls),
    re_path(r"^api/", not_found),
    path("admin/", include((_admin, "deliveries"))),
    # Before the admin site, whose catch-all would redirect unknown API paths to the login page.
    re_path(r"^admin/api/", not_found),
    path("admin/", admin.site.urls),
]
