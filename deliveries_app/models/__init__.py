"""Who is told (`apps`), what they were told (`deliveries`), and the work of telling them (`runs`)."""

from deliveries_app.models.apps import App, AppRepository, AppRepositoryQuerySet, Status
from deliveries_app.models.deliveries import Delivery, DeliveryFailure, FailureKind
from deliveries_app.models.runs import BulkOperation, Outcome, Reason, SyncRun

__all__ = [
    "App",
    "AppRepository",
    "AppRepositoryQuerySet",
    "BulkOperation",
    "Delivery",
    "DeliveryFailure",
    "FailureKind",
    "Outcome",
    "Reason",
    "Status",
    "SyncRun",
]
