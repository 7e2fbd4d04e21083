"""Use cases, one function each. The admin, the APIs, jobs and commands all call these.

A function that changes something takes an `Actor`, checks its permission, acts and audits; push hooks are not audited. It
returns what its callers show: a row, a count, whether it changed anything, or a small frozen dataclass.
"""

from deliveries_app.services.app_settings import change_app
from deliveries_app.services.cancel import cancel_operation, cancel_request, cancel_sync
from deliveries_app.services.control import (
    current_pause,
    pause_syncing,
    pause_watches,
    resume_syncing,
    resume_watches,
)
from deliveries_app.services.drift import (
    NotCheckable,
    NothingToSend,
    cancel_check,
    check_app,
    check_watch,
    send_differences,
)
from deliveries_app.services.onboarding import Onboarded, onboard_app
from deliveries_app.services.requests import MAX_PACE, NotFound, Rollout
from deliveries_app.services.resend import MAX_RESENT_AT_ONCE, resend_files, resend_many
from deliveries_app.services.resync import resync_by_app, resync_many, resync_single
from deliveries_app.services.retry import NotFailed, retry_all, retry_by_app, retry_many, retry_single
from deliveries_app.services.rollout import continue_operation
from deliveries_app.services.watch_settings import change_watch, ensure_watched
from deliveries_app.services.watching import (
    AlreadyWatched,
    Watched,
    delete_app,
    unwatch_many,
    unwatch_repository,
    watch_repository,
)
