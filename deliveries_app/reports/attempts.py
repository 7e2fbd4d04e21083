"""The last attempts at one file: the failed ones that are kept, and the last success."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import AnonymousUser, User

from deliveries_app.models import AppRepository, Delivery, DeliveryAttempt, SyncRun
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH, path_digest
from deliveries_app.permissions import Permission


@dataclass(frozen=True)
class Success:
    """The last success. `event` is empty if the delivery record is now about a newer notification."""

    at: datetime
    event: str
    status_code: int | None
    seconds: float | None
    is_success = True


@dataclass(frozen=True)
class Attempts:
    """The last attempts, newest first. A failed one has the key of its run as `run_pk`, and bodies if `shows_payloads`."""

    listed: Sequence[DeliveryAttempt | Success]
    has_failures: bool
    shows_payloads: bool

    @property
    def may_be_more(self) -> bool:
        """Whether there may have been older attempts, which are not kept."""
        return len(self.listed) == ATTEMPTS_PER_PATH


def of_path(user: User | AnonymousUser, watch: AppRepository, path: str, row: Delivery | None) -> Attempts:
    """Return the attempts at a path, whose delivery is `row`, with their bodies if the user can view them. Two queries."""
    shows_payloads = user.has_perm(Permission.VIEW_PAYLOADS)
    rows = DeliveryAttempt.objects.filter(watch=watch, path_digest=path_digest(path.encode()))[:ATTEMPTS_PER_PATH]
    failed = list(rows if shows_payloads else rows.defer("request_body", "response_body"))
    run_ids = {attempt.run_id for attempt in failed if attempt.run_id}
    run_pks = dict(SyncRun.objects.filter(run_id__in=run_ids).order_by().values_list("run_id", "pk"))
    for attempt in failed:
        attempt.run_pk = run_pks.get(attempt.run_id)  # type: ignore[attr-defined]
    listed: list[DeliveryAttempt | Success] = [*failed]
    if row and row.delivered_at:
        seconds = row.delivered_ms / 1000 if row.delivered_ms is not None else None
        event = row.kind if row.acknowledged else ""
        listed.insert(0, Success(row.delivered_at, event, row.delivered_status, seconds))
        listed = sorted(listed, key=lambda attempt: attempt.at, reverse=True)[:ATTEMPTS_PER_PATH]
    return Attempts(listed, bool(failed), shows_payloads)


def acknowledged_at(row: Delivery) -> datetime | None:
    """Return when the app last acknowledged the file, to the previous service if Docora hasn't sent it since an import."""
    return row.delivered_at or (row.updated_at if row.acknowledged else None)
