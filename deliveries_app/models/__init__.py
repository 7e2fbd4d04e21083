"""Tables and querysets: apps and watches, delivery records, sync runs, checks for differences, alerts.

`root_causes.py` classifies failures, and `bulk_sql.py` holds the hand-written SQL for batches.
"""

from deliveries_app.models.alerts import Alert, AlertChannel, AlertKind, AlertRound, ChannelName
from deliveries_app.models.apps import App, AppToken
from deliveries_app.models.audit import ActorKind, AppAction, AuditAction, AuditEntry, ContactMail
from deliveries_app.models.deliveries import Delivery, DeliveryAttempt, DeliveryFailure, FailureKind, HourlyTraffic
from deliveries_app.models.drift import DriftCheck, DriftFile, DriftKind, DriftState
from deliveries_app.models.root_causes import RootCause
from deliveries_app.models.runs import (
    BulkOperation,
    Canary,
    CanaryState,
    Notice,
    NoticeKind,
    OperationKind,
    Outcome,
    PendingRelease,
    Queue,
    Result,
    SyncRun,
    is_in_progress,
    is_superseded,
    new_run_id,
)
from deliveries_app.models.watch_state import StateDetail, WatchState
from deliveries_app.models.watches import (
    AppRepository,
    AppRepositoryQuerySet,
    FailedSync,
    Imported,
    Reason,
    Status,
    SyncPause,
)
