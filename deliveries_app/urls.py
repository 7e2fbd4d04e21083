"""Addresses below `/admin/` that are not the admin site's own; included before it, for its catch-all redirects."""

from django.urls import path

from deliveries_app import api
from deliveries_app.views import app as app_views
from deliveries_app.views import failed, overview, progress, queue

app_name = "deliveries"
urlpatterns = [
    path("api/resync", api.resync),
    path("api/resync/app/<slug:app_id>", api.resync_app),
    path("api/repositories", api.repositories),
    path("api/retry", api.retry),
    path("api/retry/app/<slug:app_id>", api.retry_app),
    path("api/retry/all", api.retry_all),
    path("api/retry/progress/<slug:operation_id>", api.progress),
    path("api/retry/cancel/<slug:operation_id>", api.cancel),
    path("progress/<slug:operation_id>/", progress.operation_progress, name="operation_progress"),
    path("progress/<slug:operation_id>/rows/", progress.operation_rows, name="operation_rows"),
    path("progress/<slug:operation_id>/cancel/", progress.cancel_operation, name="cancel_operation"),
    path("progress/<slug:operation_id>/dismiss/", progress.dismiss_operation, name="dismiss_operation"),
    path("live/", progress.live_pairs, name="live_pairs"),
    path("live/overview/", overview.live_overview, name="live_overview"),
    path("live/failed/", failed.failed_syncs, name="failed_syncs"),
    path("live/queue/", queue.live_queue, name="live_queue"),
    path("live/app/<int:pk>/", app_views.live_app, name="live_app"),
    path("live/<int:pk>/", progress.pair_progress, name="pair_progress"),
    path("live/<int:pk>/cancel/", progress.cancel_pair, name="cancel_pair"),
]
