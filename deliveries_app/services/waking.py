"""Waking the workers: a wish is written into the row first, the job only follows (`engine.md` §6)."""

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, AppRepositoryQuerySet
from docora import queueing

SYNC_JOB = "deliveries_app.jobs.sync_pair"
ENQUEUE_AHEAD = 50  # jobs that wait in the default queue at once; more would only fill Redis


def wish(pairs: AppRepositoryQuerySet) -> list[int]:
    """These pairs shall sync as soon as possible, also when a worker is busy with them now. Which they are.

    They are locked in the order of their keys, as everywhere: one UPDATE of many rows has an order of its own.
    """
    with transaction.atomic():
        pks = list(pairs.select_for_update(of=("self",)).order_by("pk").values_list("pk", flat=True))
        AppRepository.objects.filter(pk__in=pks).update(wanted=F("wanted") + 1, next_sync_at=Now())
    return pks


def enqueue(pair: AppRepository, queue: str) -> None:
    """Wake a worker for a pair whose wish is in the row; after the commit of the current transaction."""
    queueing.enqueue_after_commit(queue, SYNC_JOB, pair.pk, pair.job_id)


def enqueue_due() -> int:
    """Fill the default queue with pairs that are due and free, the longest waiting first. How many wait there now.

    A queue that is half full still has work for a while. Pairs that wait in it already are refused by their job id.
    """
    waiting = queueing.waiting("default")
    if waiting is None or waiting > ENQUEUE_AHEAD // 2:
        return 0
    pairs = AppRepository.objects.due().free().select_related("app", "repository").order_by("next_sync_at", "pk")
    return sum(
        queueing.enqueue("default", SYNC_JOB, pair.pk, pair.job_id, owned=False) for pair in pairs[:ENQUEUE_AHEAD]
    )
