"""Waking the workers: a wish is written into the row first, the job only follows (`engine.md` §6)."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, DurationField, ExpressionWrapper, F, Func, Value
from django.db.models.expressions import Combinable
from django.db.models.functions import Coalesce, Greatest, Least, Now, Random

from deliveries_app.models import AppRepository, AppRepositoryQuerySet
from docora.redis import queues

SYNC_JOB = "deliveries_app.jobs.sync_watch"
ENQUEUE_AHEAD = 50  # jobs that wait in the default queue at once; more would only fill Redis


def request_sync(watches: AppRepositoryQuerySet) -> list[int]:
    """These watches shall sync as soon as possible, also when a worker is busy with them now. Which they are.

    They are locked in the order of their keys, as everywhere: one UPDATE of many rows has an order of its own.
    """
    with transaction.atomic():
        pks = list(watches.select_for_update(of=("self",)).order_by("pk").values_list("pk", flat=True))
        AppRepository.objects.filter(pk__in=pks).update(request_count=F("request_count") + 1, next_sync_at=Now())
    return pks


def enqueue(watch: AppRepository, queue: str) -> None:
    """Wake a worker for a watch whose wish is in the row; after the commit of the current transaction."""
    queues.enqueue_after_commit(queue, SYNC_JOB, watch.pk, watch.job_id)


def enqueue_due() -> int:
    """Fill the default queue with watches that are due and free, the longest waiting first. How many wait there now.

    A queue that is half full still has work for a while. Watches that wait in it already are refused by their job id.
    """
    waiting = queues.waiting("default")
    if waiting is None or waiting > ENQUEUE_AHEAD // 2:
        return 0
    watches = AppRepository.objects.due().free().select_related("app", "repository").order_by("next_sync_at", "pk")
    return sum(
        queues.enqueue("default", SYNC_JOB, watch.pk, watch.job_id, owned=False) for watch in watches[:ENQUEUE_AHEAD]
    )


_JITTER = 0.1


def next_check(moved_at: Combinable | None = None) -> Combinable:
    """For `next_check_at`, as an expression; `moved_at` when it changes in the same update."""
    half = _Duration((Now() - (moved_at or Coalesce(F("moved_at"), F("created_at")))) * Value(0.5))
    shortest = _seconds(settings.RESCAN_MIN_INTERVAL_SECONDS)
    longest = _seconds(settings.RESCAN_INTERVAL_SECONDS)
    pause = Least(Greatest(half, shortest), longest)
    chance = Value(1 - _JITTER) + Value(2 * _JITTER) * Random()
    return ExpressionWrapper(Now() + _Duration(pause * chance), output_field=DateTimeField())


class _Duration(Func):
    """A duration that was multiplied; SQLite has them as whole microseconds, and Django's product there is a text."""

    template = "(%(expressions)s)"

    def __init__(self, product: Combinable) -> None:
        super().__init__(ExpressionWrapper(product, output_field=DurationField()), output_field=DurationField())

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="CAST(%(expressions)s AS INTEGER)", **extra)


def _seconds(seconds: float) -> Value:
    return Value(timedelta(seconds=seconds), output_field=DurationField())
