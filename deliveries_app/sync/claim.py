"""Claim a watch that is due and free: take its lease and half of the app's free slots (`engine.md` §4 and §7).

The app's row is locked FOR NO KEY UPDATE, so that rows that refer to it can be written meanwhile. Otherwise, a cancel that holds
the watch and a claim that holds the app would wait for each other.
"""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce, Now

from deliveries_app.models import App, AppRepository, DeliveryFailure, DriftCheck, Notice, Status
from deliveries_app.models.watches import MAX_SHARED_CRASHES
from deliveries_app.sync.dead_processes import doubt_until
from deliveries_app.sync.lease import Lease
from deliveries_app.sync.slots import Slots, other_leases
from docora.db.clock import DatabaseClock, boot_seconds, from_now
from docora.db.compiled import compiled_and_prepared
from docora.process import process_name
from docora.server.worker import identity


def claim(watch_pk: int, *, alone: bool = True) -> Lease | None:
    """Claim the watch if it is due and free. Return None if it is not, or if the app has no free slot.

    In the latter case, ask for a slot: the app's running watches then share theirs. `alone`: this process syncs no other
    watch meanwhile. Otherwise, a watch that needs its own process is not claimed.
    """
    claimed_at = boot_seconds()
    with transaction.atomic():
        # Two statements, so that the second sees what others have committed while the first waited for the app's row.
        apps = _locked_app(watch_pk)
        due: list[Any] = _locked_if_due(watch_pk)
        if not apps or not due or (due[0].needs_own_process and not alone):
            return None
        [watch] = due
        [watch.app] = apps
        clock = DatabaseClock(watch.database_now)
        free = _free_slots(watch)
        if free < 1:
            AppRepository.objects.filter(pk=watch_pk).update(slots_requested_at=Now())
            return None
        # Take half of the free slots, so that the next watch finds some. A small sync ends before slots are shared again.
        slots = max(1, free // 2)
        had_failed = watch.status == Status.FAILED
        _write_claim(watch, slots)
    lease = Lease(
        watch=watch,
        fencing_token=watch.fencing_token,
        generation=watch.generation,
        slots=Slots(watch, slots, claimed_at),
        sequence_high=watch.sequence_high,
        clock=clock,
        extended_at=claimed_at,
        had_failed=had_failed,
        had_notices=watch.had_notices,
        had_listed=watch.had_listed,
        had_check=watch.had_check,
    )
    lease.reserve_sequences(1)  # written by `extend`, before anything is sent
    return lease


@compiled_and_prepared
def _locked_app(watch_pk: int) -> QuerySet[App]:
    return App.objects.select_for_update(of=("self",), no_key=True).filter(watches=watch_pk)


@compiled_and_prepared
def _locked_if_due(watch_pk: int) -> QuerySet[AppRepository]:
    """Return the watch, locked, if it is due and free, with everything else that a claim reads."""
    own = {"watch_id": OuterRef("pk")}
    others = other_leases(OuterRef("app_id"), OuterRef("pk"))
    taken = others.order_by().values("app_id").annotate(taken=Sum("lease_slots")).values("taken")
    due = AppRepository.objects.filter(pk=watch_pk).due().free().select_related("repository")
    return due.select_for_update(no_key=True).annotate(
        database_now=Now(),
        taken=Coalesce(Subquery(taken), 0),
        had_notices=Exists(Notice.objects.filter(**own)),
        had_listed=Exists(DeliveryFailure.objects.filter(**own)),
        had_check=Exists(DriftCheck.objects.open().filter(**own)),
    )


def _free_slots(watch: Any) -> int:
    """Return how many of the app's slots no other run has taken. The annotation `taken` is that of `_locked_if_due`.

    An endpoint that was down gets one request from one watch before all the others continue.
    """
    app = watch.app
    if app.down_count:
        return 0 if watch.taken else 1
    return int(app.slots_allowed - watch.taken)


def _write_claim(watch: Any, slots: int) -> None:
    """Write the claim into the row, which is locked, and into `watch`.

    An attempt whose process died counts only if the process synced no other watch: any of them could have killed it. Only
    deaths let the count exceed the limit, even if the limit was lowered since the last attempt.
    """
    died = watch.lease_until is not None
    died_in_shared_process = died and watch.crash_count < MAX_SHARED_CRASHES
    attempts = watch.retry_count if died else min(watch.retry_count, settings.MAX_RETRY_ATTEMPTS - 1)
    changes = {
        "fencing_token": watch.fencing_token + 1,
        "claimed_request_count": watch.request_count,
        # At least 1, because a person may have set it to 0 before the process died.
        "retry_count": max(1, attempts + (0 if died_in_shared_process else 1)),
        "crash_count": watch.crash_count + (1 if died_in_shared_process else 0),
        "status": Status.SCANNING,
        "lease_slots": slots,
        "lease_owner": identity()[:100],
        "lease_process": process_name(),
        "slots_requested_at": None,
        "doubt_until": doubt_until(watch, watch.database_now) if died else watch.doubt_until,
    }
    if died:
        # If the database's disk is full, the last attempt may not have died but failed to write this. The next one would, too, so
        # the claim fails, which counts nothing.
        _watch.update(watch.pk, lease_until=None, lease_slots=0)
    _watch.update(watch.pk, lease_until=from_now(settings.LEASE_SECONDS), **changes)
    for name, value in changes.items():
        setattr(watch, name, value)


@compiled_and_prepared
def _watch(watch_pk: int) -> QuerySet[AppRepository]:
    return AppRepository.objects.filter(pk=watch_pk)
