"""Remove ended watches, deleted apps, and repositories that no app watches (`engine.md` §9)."""

from collections.abc import Callable
from typing import Any

from django.db import connection, transaction
from django.db.models import F, Model, Q, QuerySet
from django.db.models.functions import Greatest, Now

from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    Delivery,
    DeliveryAttempt,
    DeliveryFailure,
    DriftFile,
)
from deliveries_app.models.watches import new_watch_id
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT, TOO_FAR_AHEAD
from docora.db.clock import from_now
from docora.redis import queues
from repositories_app import services as repositories
from repositories_app.models import Repository

CLEAN_UP_JOB = "deliveries_app.jobs.clean_up"
_SLICE = 5000
_KEYS: dict[type[Model], str] = {Delivery: "path", DeliveryFailure: "path_digest", DeliveryAttempt: "path_digest"}
"""The column after `watch` in an index of each table. In any other order, each slice would read the whole table."""
_WATCHES_AT_ONCE = 100


def enqueue_clean_up() -> None:
    """Enqueue a cleanup job if there is something to remove."""
    if (
        AppRepository.objects.filter(ended_at__isnull=False).exists()
        or App.objects.filter(ended_at__isnull=False).exists()
    ):
        queues.enqueue("low", CLEAN_UP_JOB, "ended", "clean-up", owned=False, leased=False)


def remove_ended(stop: Callable[[], bool] = lambda: False) -> int:
    """Remove ended watches that no worker owns, repositories left without a watch, and deleted apps.

    Return the number of removed watches. Once `stop` returns True, leave the rest to the next job.
    """
    removed = 0
    for watch in _removable().select_related("repository")[:_WATCHES_AT_ONCE]:
        _remove_slices(watch.pk, stop)
        if stop():
            return removed
        removed += _remove(watch)
        mirror = repositories.mirror_of(watch.repository)
        if Repository.objects.filter(pk=watch.repository_id).exists():
            mirror.remove_stale_refs(watch.repository.watches.watch_ids)
        else:
            mirror.remove(wait=False)  # if it is in use, `cache.maintain` removes it after a later job
    App.objects.filter(ended_at__isnull=False, watches=None).delete()
    return removed


def _remove(watch: AppRepository) -> bool:
    """Remove the watch, and its repository if no other app watches it. Return False if its app watches it again.

    Both are removed in one transaction, because no other code removes a repository without watches.
    """
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                # PostgreSQL's statistics may still count the removed records. It would read the whole table of deliveries.
                cursor.execute("SET LOCAL enable_seqscan = off")
        apps = App.objects.filter(pk=watch.app_id)
        apps.select_for_update(no_key=True).first()
        repository = repositories.lock(watch.repository_id)
        ended = _removable().select_for_update().filter(pk=watch.pk).first()
        if ended is None:
            return False
        # The sequences of the app's new watches start above it.
        apps.update(sequence_high=Greatest(F("sequence_high"), ended.sequence_high))
        ended.delete()
        if repository and not repository.watches.exists():
            repository.delete()
    return True


def _removable() -> AppRepositoryQuerySet:
    """Return the ended watches that no worker owns, without those whose app may still be processing a dead process's requests.

    Their rows stay until then, because they make a new watch of the same repository wait for those requests.
    """
    just_expired = Q(lease_until__range=(from_now(-HOLD_AFTER_TIMEOUT), Now()))
    in_doubt = Q(doubt_until__gt=Now(), doubt_until__lte=from_now(TOO_FAR_AHEAD))
    return AppRepository.objects.filter(ended_at__isnull=False).free().exclude(just_expired | in_doubt)


def _remove_slices(watch_pk: int, stop: Callable[[], bool]) -> None:
    for model, key in _KEYS.items():
        rows = model._default_manager.filter(watch_id=watch_pk, watch__ended_at__isnull=False).order_by(key)
        last: str | None = ""
        while last is not None and not stop():
            last = _remove_slice(watch_pk, rows.filter(**{f"{key}__gte": last}), key)
    files = DriftFile.objects.filter(check_of__watch=watch_pk, check_of__watch__ended_at__isnull=False)
    while not stop() and (pks := list(files.values_list("pk", flat=True)[:_SLICE])):
        DriftFile.objects.filter(pk__in=pks)._raw_delete(using=files.db)


def _remove_slice(watch_pk: int, rows: QuerySet[Any], key: str) -> str | None:
    """Remove the first slice of rows, which are ordered by `key`. Return its last key, or None if no row was left.

    The lock keeps the watch from being revived at the same time. If it is revived later, it has a new id: the rows no longer
    show everything that the app may hold, so the app has to drop its copy (`engine.md` §9).
    """
    with transaction.atomic():
        AppRepository.objects.select_for_update().filter(pk=watch_pk).first()
        part = list(rows.values_list("pk", key)[:_SLICE])
        if not part:
            return None
        rows.model._default_manager.filter(pk__in=[pk for pk, _ in part])._raw_delete(using=rows.db)
        AppRepository.objects.filter(pk=watch_pk).update(watch_id=new_watch_id())
    return str(part[-1][1])
