"""The last attempts at one file: the failed ones that are kept, and the last success."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser

from deliveries_app.models import AppRepository, Delivery, DeliveryAttempt, SyncRun
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH, path_digest
from deliveries_app.permissions import Permission


@dataclass(frozen=True)
class Attempt:
    """One attempt. Only a failed one has a message, headers, bodies and a run.

    `seconds` is how long its requests took, None if unknown. `event` is empty for a success whose delivery
    record is now about a newer notification.
    """

    pk: int  # 0 for the success
    at: datetime
    event: str
    status: int | None
    seconds: float | None
    is_success: bool = False
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    request_body: str = ""
    response_body: str = ""
    run_id: str = ""
    run_pk: int | None = None

    @property
    def result(self) -> str:
        """The status, or the error without its full stop."""
        return f"HTTP {self.status}" if self.status else self.message.removesuffix(".")


@dataclass(frozen=True)
class Attempts:
    """The last attempts, newest first. The bodies are empty unless `shows_payloads`."""

    listed: Sequence[Attempt]
    shows_payloads: bool

    @property
    def has_failures(self) -> bool:
        return any(not attempt.is_success for attempt in self.listed)


def of_path(
    user: AbstractBaseUser | AnonymousUser, watch: AppRepository, path: str | bytes, row: Delivery | None
) -> Attempts:
    """Return the attempts at a path, whose delivery is `row`, with their bodies if the user can view them. Two queries."""
    shows_payloads = user.has_perm(Permission.VIEW_PAYLOADS)  # type: ignore[union-attr]
    digest = path_digest(path.encode() if isinstance(path, str) else path)
    rows = DeliveryAttempt.objects.filter(watch=watch, path_digest=digest).order_by("-pk")[:ATTEMPTS_PER_PATH]
    failed = list(rows if shows_payloads else rows.defer("request_body", "response_body"))
    run_ids = {attempt.run_id for attempt in failed if attempt.run_id}
    run_pks = dict(SyncRun.objects.filter(run_id__in=run_ids).order_by().values_list("run_id", "pk"))
    listed = [
        Attempt(
            attempt.pk,
            attempt.at,
            attempt.event,
            attempt.status_code,
            attempt.milliseconds / 1000,
            message=attempt.message,
            headers=attempt.headers,
            request_body=attempt.request_body if shows_payloads else "",
            response_body=attempt.response_body if shows_payloads else "",
            run_id=attempt.run_id,
            run_pk=run_pks.get(attempt.run_id),
        )
        for attempt in failed
    ]
    success = _success(row) if row else None
    if success:
        listed = sorted([success, *listed], key=lambda attempt: attempt.at, reverse=True)[:ATTEMPTS_PER_PATH]
    return Attempts(listed, shows_payloads)


def _success(row: Delivery) -> Attempt | None:
    if row.delivered_at is None:
        return None
    seconds = row.delivered_ms / 1000 if row.delivered_ms is not None else None
    event = row.kind if row.acknowledged else ""
    return Attempt(0, row.delivered_at, event, row.delivered_status, seconds, is_success=True)


def acknowledged_at(row: Delivery) -> datetime | None:
    """Return when the app last acknowledged the file, or after an import, when Docora found that it already had it."""
    return row.delivered_at or (row.updated_at if row.acknowledged else None)
