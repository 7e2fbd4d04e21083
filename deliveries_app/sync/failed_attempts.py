"""Keep the requests and responses of notifications that were not acknowledged (`engine.md` §7).

Only failures are kept: the newest ones of each path and of each app, so that no app can fill the database.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from django.conf import settings
from django.db.models import QuerySet

from deliveries_app.models import AppRepository, DeliveryAttempt
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH
from docora.http.client import Request

KEPT_BYTES = 1000
"""How many bytes of each request body and each response body are kept."""
_READ_BYTES = 1600  # so that a key is recognised even if only its first bytes are kept


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: its headers, the beginning of its body, and its duration, with that of a large file's earlier chunks."""

    headers: tuple[str, ...]
    body: bytes
    seconds: float

    @classmethod
    def of(cls, request: Request, seconds: float) -> Self:
        return cls(request.headers, request.body[:_READ_BYTES], seconds)

    @property
    def milliseconds(self) -> int:
        return round(self.seconds * 1000)


def write(watch: AppRepository, attempts: Sequence[DeliveryAttempt]) -> None:
    """Write these attempts and remove the oldest ones beyond the limits. Call inside the batch's transaction."""
    if not attempts or not settings.ATTEMPTS_PER_APP:
        return
    DeliveryAttempt.objects.bulk_create(attempts)
    _trim_paths(watch, {attempt.path_digest for attempt in attempts})
    _trim_app(watch.app_id)


def beginning(text: str) -> str:
    """Return the part of a body that is kept."""
    encoded = text.encode()
    return text if len(encoded) <= KEPT_BYTES else encoded[:KEPT_BYTES].decode("utf-8", "ignore") + "…"


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
