"""The Django admin. Views only translate between requests and `deliveries_app.services`."""

from deliveries_app.admin.apps import AppAdmin
from deliveries_app.admin.deliveries import DeliveryAdmin
from deliveries_app.admin.failed import FailedSyncAdmin
from deliveries_app.admin.operations import BulkOperationAdmin
from deliveries_app.admin.queue import QueueAdmin
from deliveries_app.admin.repositories import RepositoryAdmin
from deliveries_app.admin.runs import SyncRunAdmin
from deliveries_app.admin.sign_in_attempts import SignInAttemptAdmin
from deliveries_app.admin.watches import AppRepositoryAdmin

__all__ = [
    "AppAdmin",
    "AppRepositoryAdmin",
    "BulkOperationAdmin",
    "DeliveryAdmin",
    "FailedSyncAdmin",
    "QueueAdmin",
    "RepositoryAdmin",
    "SignInAttemptAdmin",
    "SyncRunAdmin",
]
