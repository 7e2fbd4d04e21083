"""Records of failed notifications: the list of failing and skipped files, and each failed request (`engine.md` §7).

The list shows the current state of each path. Of the requests and their responses, the newest ones of each path and of each
app are kept, so that no app can fill the database.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import batched
from typing import NamedTuple, Self

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet

from deliveries_app.models import AppRepository, Delivery, DeliveryAttempt, DeliveryFailure, FailureKind
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH, Kind, path_digest
from deliveries_app.planning.eligibility import Skipped
from deliveries_app.planning.plan import Change
from deliveries_app.sync.lease import Lease
from deliveries_app.sync.notification import Failure, Notification
from deliveries_app.webhooks.keyring import SHOWN_CHARS, response_texts
from deliveries_app.webhooks.payloads import masked_headers
from docora.http.client import Request
from docora.text import clean_text

KEPT_BYTES = 1000
"""How many bytes of each request body and each response body are kept."""
_SENT_BYTES = 1600  # so that a key is recognised even if only its first bytes are kept
_READ_BYTES = 4096  # of a response: as much as the HTTP client keeps


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: its headers, the beginning of its body, and its duration, with that of a large file's earlier chunks."""

    headers: tuple[str, ...]
    body: bytes
    seconds: float

    @classmethod
    def of(cls, request: Request, seconds: float) -> Self:
        return cls(request.headers, request.body[:_SENT_BYTES], seconds)


class Failed(NamedTuple):
    """A notification or change that failed, with the request if one was sent."""

    what: Notification | Change
    failure: Failure
    at: datetime
    sent: Sent | None

    @property
    def was_announced(self) -> bool:
        """Whether it counts as an attempt. A change that could not be sent in this run does not."""
        return isinstance(self.what, Notification)

    @property
    def change(self) -> Change:
        return self.what.change if isinstance(self.what, Notification) else self.what


def first_failed_at(watch: AppRepository, change: Change) -> datetime | None:
    """Return when the listed failure of this path began, by the database's clock, or None if there is none."""
    listed = DeliveryFailure.objects.filter(
        watch=watch, path_digest=path_digest(change.path.encode()), kind=FailureKind.FAILED
    )
    return listed.values_list("first_at", flat=True).first()


def write(watch: AppRepository, failed: Sequence[Failed], now: datetime) -> None:
    """Record that these failed. Call this inside the batch's transaction."""
    if not failed:
        return
    _count_attempts(watch, [one for one in failed if one.was_announced], now)
    _begin_again(watch, failed, now)
    rows: dict[bytes, DeliveryFailure] = {}  # by path
    attempts = []
    bodies = [(one.failure.body, one.sent.body if one.sent else b"") for one in failed]
    texts = response_texts(watch.app, [body for pair in bodies for body in pair], most=_READ_BYTES)
    for one, response_body, request_body in zip(failed, texts[::2], texts[1::2], strict=True):
        path, tries = one.change.path.encode(), one.change.attempts + int(one.was_announced)
        body = clean_text(response_body, SHOWN_CHARS)
        # A path may fail twice: the delete of what a transform made, and the transform of the path's own file.
        rows[path] = _failure_row(watch, path, one.failure, FailureKind.FAILED, now, tries, body)
        if one.sent:
            attempts.append(_attempt_row(watch, one, one.sent, request_body, response_body))
    write_attempts(watch, attempts)
    DeliveryFailure.objects.bulk_create(
        sorted(rows.values(), key=lambda row: row.path_digest),  # one order for every writer: no deadlock
        batch_size=500,
        update_conflicts=True,
        unique_fields=["watch", "path_digest"],
        update_fields=["kind", "cause", "status_code", "message", "body", "attempts", "fencing_token", "last_at"],
    )


def _count_attempts(watch: AppRepository, announced: Sequence[Failed], now: datetime) -> None:
    """Count an attempt of each path, and set until when it must not be sent again."""
    rows = Delivery.objects.filter(watch=watch)
    for seconds in {one.failure.hold_seconds for one in announced}:
        paths = [one.change.path for one in announced if one.failure.hold_seconds == seconds]
        hold = now + timedelta(seconds=seconds) if seconds else None
        rows.filter(path__in=paths).update(attempts=F("attempts") + 1, hold_until=hold, updated_at=now)


def _begin_again(watch: AppRepository, failed: Sequence[Failed], now: datetime) -> None:
    """Set when the listed failures of paths began to now, if a skipped file fails, or a delete after another notification."""
    new_deletes = [one.change for one in failed if one.change.kind == Kind.DELETE and one.change.sequence is None]
    listed = DeliveryFailure.objects.filter(watch=watch, path_digest__in=_digests(one.change for one in failed))
    listed.filter(Q(kind=FailureKind.SKIPPED) | Q(path_digest__in=_digests(new_deletes))).update(first_at=now)


def _digests(changes: Iterable[Change]) -> list[str]:
    return [path_digest(change.path.encode()) for change in changes]


def disown(lease: Lease) -> None:
    """Treat the files that this claim has listed as failed as those of an earlier claim, because it plans again."""
    with transaction.atomic():
        lease.extend()
        listed = DeliveryFailure.objects.filter(watch=lease.watch, fencing_token=lease.fencing_token)
        listed.update(fencing_token=lease.fencing_token - 1)
    lease.had_listed = True


def settle_lists(
    watch: AppRepository, skipped: Sequence[Skipped], *, among: Sequence[bytes] | None, now: datetime
) -> None:
    """Update the lists after an attempt that tried its whole plan: keep its own failures and the paths that its tree skips.

    `among`: the paths that a fast plan covers (None: all paths). Compare claims, not times, because the database's clock may
    be set back. Call this in the transaction that sets the base: until then, an earlier failure may be the only trace of a
    path.
    """
    listed = DeliveryFailure.objects.filter(watch=watch)
    failed_before = Q(kind=FailureKind.FAILED) & ~Q(fencing_token=watch.fencing_token)
    known = Q(kind=FailureKind.SKIPPED)
    if among is not None:
        known &= Q(path_digest__in=[path_digest(path) for path in among])
    rows = [
        _failure_row(watch, item.path, Failure(item.cause, item.message), FailureKind.SKIPPED, now, 1)
        for item in skipped
    ]
    if not rows:
        listed.filter(known | failed_before).delete()
        return
    # A path that is still skipped for the same reason keeps its place in the list, which clients read in pages.
    still = {(row.path_digest, row.cause, row.message) for row in rows}
    before = listed.filter(known).values_list("pk", "path_digest", "cause", "message")
    gone = [pk for pk, *reason in before if tuple(reason) not in still]
    listed.filter(failed_before).delete()
    for some in batched(gone, 500):
        listed.filter(pk__in=some).delete()
    listed.filter(known).update(last_at=now)
    DeliveryFailure.objects.bulk_create(
        sorted(rows, key=lambda row: row.path_digest),
        batch_size=500,
        ignore_conflicts=True,  # a failed delete of the path takes precedence
    )


def _failure_row(
    watch: AppRepository,
    path: bytes,
    failure: Failure,
    kind: FailureKind,
    now: datetime,
    attempts: int,
    body: str = "",
) -> DeliveryFailure:
    return DeliveryFailure(
        watch=watch,
        path_digest=path_digest(path),
        path=clean_text(path.decode("utf-8", "backslashreplace"), 1024)
        if kind == FailureKind.SKIPPED
        else path.decode(),
        kind=kind,
        cause=failure.cause,
        status_code=failure.status,
        message=failure.message[:500],
        body=body,
        attempts=attempts,
        fencing_token=watch.fencing_token,
        first_at=now,
        last_at=now,
    )


def _attempt_row(
    watch: AppRepository, failed: Failed, sent: Sent, request_body: str, response_body: str
) -> DeliveryAttempt:
    return DeliveryAttempt(
        app_id=watch.app_id,
        watch=watch,
        path_digest=path_digest(failed.change.path.encode()),
        at=failed.at,
        event=failed.change.kind,
        cause=failed.failure.cause,
        status_code=failed.failure.status,
        message=failed.failure.message[:500],
        milliseconds=round(sent.seconds * 1000),
        headers=masked_headers(sent.headers),
        request_body=beginning(request_body),
        response_body=beginning(response_body),
    )


def beginning(text: str) -> str:
    """Return the part of a body that is kept."""
    encoded = text.encode()
    return text if len(encoded) <= KEPT_BYTES else encoded[:KEPT_BYTES].decode("utf-8", "ignore") + "…"


def write_attempts(watch: AppRepository, attempts: Sequence[DeliveryAttempt]) -> None:
    """Write these attempts and remove the oldest ones beyond the limits."""
    if not attempts or not settings.ATTEMPTS_PER_APP:
        return
    DeliveryAttempt.objects.bulk_create(attempts)
    _trim_paths(watch, {attempt.path_digest for attempt in attempts})
    _trim_app(watch.app_id)


def _trim_paths(watch: AppRepository, digests: Iterable[str]) -> None:
    rows = DeliveryAttempt.objects.filter(watch=watch, path_digest__in=digests).order_by("-pk")
    of_path: dict[str, list[int]] = defaultdict(list)
    for digest, pk in rows.values_list("path_digest", "pk"):
        of_path[digest].append(pk)
    surplus = [pk for pks in of_path.values() for pk in pks[ATTEMPTS_PER_PATH:]]
    if surplus:
        _remove(DeliveryAttempt.objects.filter(pk__in=surplus))


def _trim_app(app_pk: int) -> None:
    """Remove the app's oldest attempts.

    Workers that record for the app at the same time do not see each other's rows. So there may be one batch too many for
    each of them, until the next batch is recorded.
    """
    rows = DeliveryAttempt.objects.filter(app_id=app_pk)
    most = settings.ATTEMPTS_PER_APP
    newest_surplus = rows.order_by("-pk").values_list("pk", flat=True)[most : most + 1].first()
    if newest_surplus is not None:
        _remove(rows.filter(pk__lte=newest_surplus))


def _remove(rows: QuerySet[DeliveryAttempt]) -> None:
    """Remove these rows. Skip those that another worker is removing, because two workers that wait could deadlock."""
    pks = list(rows.order_by("pk").select_for_update(skip_locked=True).values_list("pk", flat=True))
    DeliveryAttempt.objects.filter(pk__in=pks)._raw_delete(using=rows.db)
