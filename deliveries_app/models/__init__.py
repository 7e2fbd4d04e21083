"""Who is told (`apps`), what they were told (`deliveries`), and the work of telling them (`runs`)."""

from deliveries_app.models.apps import App, AppRepository, AppRepositoryQuerySet, AppToken, Status
from deliveries_app.models.deliveries import Delivery, DeliveryFailure, FailureKind
from deliveries_app.models.runs import BulkOperation, Notice, NoticeKind, Outcome, Queue, Reason, SyncRun, new_run_id

__all__ = [
    "App",
    "AppRepository",
    "AppRepositoryQuerySet",
    "AppToken",
    "BulkOperation",
    "Delivery",
    "DeliveryFailure",
    "FailureKind",
    "Notice",
    "NoticeKind",
    "Outcome",
    "Queue",
    "Reason",
    "Status",
    "SyncRun",
    "new_run_id",
]
