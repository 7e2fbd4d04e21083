"""The verbs. Admin, JSON, jobs and commands call these and nothing below them; each takes an `Actor`, checks, acts,
audits and returns a small frozen dataclass."""

from deliveries_app.services.impact import Impact, impact_of
from deliveries_app.services.onboarding import Onboarded, change_app, onboard_app
from deliveries_app.services.resync import PERMISSION as RESYNC_PERMISSION
from deliveries_app.services.resync import (
    NotFound,
    cancel_operation,
    cancel_resync,
    dismiss_operation,
    resync_by_app,
    resync_many,
    resync_single,
)
from deliveries_app.services.waking import enqueue_due, wish
from deliveries_app.services.watching import Watched, delete_app, unwatch, watch

__all__ = [
    "RESYNC_PERMISSION",
    "Impact",
    "NotFound",
    "Onboarded",
    "Watched",
    "cancel_operation",
    "cancel_resync",
    "change_app",
    "delete_app",
    "dismiss_operation",
    "enqueue_due",
    "impact_of",
    "onboard_app",
    "resync_by_app",
    "resync_many",
    "resync_single",
    "unwatch",
    "watch",
    "wish",
]
