"""Share out an app's slots: how many notifications each of its runs may have in flight (`engine.md` §7)."""

from typing import Any

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce

from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet
from deliveries_app.models.watches import SLOT_REQUEST_SECONDS, app_is_full, has_no_cooldown, is_unpaused
from deliveries_app.scheduling import has_bulk_run
from deliveries_app.sync import pace
from deliveries_app.sync.exceptions import Paused
from docora.db.clock import boot_seconds, from_now
from docora.db.compiled import compiled

_WAITING_SECONDS = 5.0  # a watch that has asked for a slot within this time waits for one
_REBALANCE_SECONDS = 1.0, 0.25
"""How often a run that has all of the app's slots checks its share, and how often any other run does.

The first check is a second after the claim, when the sync of a small repository has ended.
"""


class Slots:
    """The slots of one run, and the pace of its app.

    `count` is how many notifications may be in flight. It changes as other runs of the app start and end. `written` is the
    number in the watch's row. It is higher than a reduced `count` until the requests beyond that have settled.
    """

    def __init__(self, watch: AppRepository, count: int, claimed_at: float) -> None:
        """`claimed_at`: by the boot-time clock. The row has held `count` since then."""
        self._watch, self._app = watch, watch.app
        self.count = self.written = count
        self.rebalance_at = claimed_at + _REBALANCE_SECONDS[0]

    @property
    def gap(self) -> float:
        """Seconds between the starts of two notifications."""
        return self._app.pace_gap

    def slow_down(self) -> None:
        self._adopt_pace(pace.slow_down(self._app))

    def speed_up(self, after: float = pace.FASTER_AFTER) -> None:
        if self._app.is_slowed_down:
            self._adopt_pace(pace.speed_up(self._app, after))

    def _adopt_pace(self, app: App) -> None:
        """Follow the app's pace. If more slots are allowed, the next `rebalance` takes its share of them."""
        self._app.pace_slots, self._app.pace_gap = app.pace_slots, app.pace_gap
        self.count = min(self.count, app.slots_allowed)

    def rebalance(self, in_flight: int, *, at_once: bool = False) -> None:
        """Take the fair share of the app's slots: every `_REBALANCE_SECONDS` or `at_once`.

        A smaller share is written once no more than that is in flight, so that slots are free before another run takes them.
        Until then, nothing new is sent. Raises `Paused` if the watch, its app or all syncing was paused meanwhile, if the watch
        has ended, if another run has put the app on hold, if its base URL has changed, if a rotation of its signing key has
        begun or ended, or if it now allows fewer notifications than it has runs.
        """
        if not at_once and boot_seconds() < self.rebalance_at:
            return
        if not self.count == self.written == self._fair_share():
            with transaction.atomic():
                App.objects.select_for_update(no_key=True).only("pk").get(pk=self._app.pk)
                # Again: other runs may have changed theirs before this one had the lock.
                self.count = self._fair_share()
                self.written = max(self.count, in_flight)
                rows = AppRepository.objects.filter(pk=self._watch.pk, fencing_token=self._watch.fencing_token)
                rows.update(lease_slots=self.written)
        self.rebalance_at = boot_seconds() + _REBALANCE_SECONDS[self.count < self._app.slots_allowed]

    def _fair_share(self) -> int:
        """Return the run's share of the app's slots: one part for each run, and one for all watches that wait for a slot.

        Waiting watches get their slots one after another: if slots were kept for several at once, some would stay unused.
        Slots left over go to the watches with the lowest primary keys. Adopts the app's pace. Raises `Paused`.
        """
        app: Any
        [app] = _app_with_runs(self._app.pk, self._watch.pk)
        is_same = all(
            getattr(app, name) == getattr(self._app, name) for name in ("base_url", "key_rotation_started_at")
        )
        if not app.may_continue or not is_same or app.earlier >= app.max_in_flight:
            raise Paused  # again at every call, because some callers ignore it
        self._adopt_pace(app)
        share, left_over = divmod(app.slots_allowed, 1 + app.others + app.waits)
        share += app.earlier < left_over
        # No more than the limit at the claim: the run's client may have no more connections.
        return max(1, int(min(share, app.slots_allowed - app.taken, self._app.max_in_flight)))

    def watches_without_slot(self) -> AppRepositoryQuerySet:
        """Return the app's watches that have waited a second for a slot, which this run can free only by ending.

        Those of bulk operations are left out: they wait for runs, as in the queue. If this run has several slots, return no
        watches, because it shares them.
        """
        if self.count > 1:
            return AppRepository.objects.none()
        due = AppRepository.objects.due().free().filter(app_is_full(), ~has_bulk_run(), app=self._app)
        return due.filter(next_sync_at__lt=from_now(-SLOT_REQUEST_SECONDS))


@compiled
def _app_with_runs(app_pk: int, watch_pk: int) -> QuerySet[App]:
    """Return the app's pace, with everything that a run of the watch needs to take its share of the slots.

    - `may_continue`: no unwatch, no pause and no cooldown of the endpoint stops this run.
    - `others` is the number of the app's other runs, and `taken` the number of their slots.
    - `earlier` is how many of the other runs are of watches with a lower primary key.
    - `waits`: another watch waits for a slot.
    """
    others = other_leases(OuterRef("pk"), watch_pk).order_by().values("app_id")
    asking = AppRepository.objects.alive().free().filter(app_id=OuterRef("pk")).exclude(pk=watch_pk)
    own = AppRepository.objects.alive().filter(is_unpaused() & has_no_cooldown(), pk=watch_pk)
    number = Count("pk")
    return (
        App.objects.filter(pk=app_pk)
        .only("base_url", "key_rotation_started_at", "pace_slots", "pace_gap", "max_in_flight")
        .annotate(
            may_continue=Exists(own),
            others=Coalesce(Subquery(others.annotate(n=number).values("n")), 0),
            earlier=Coalesce(Subquery(others.filter(pk__lt=watch_pk).annotate(n=number).values("n")), 0),
            taken=Coalesce(Subquery(others.annotate(n=Sum("lease_slots")).values("n")), 0),
            waits=Exists(asking.filter(slots_requested_at__gt=from_now(-_WAITING_SECONDS))),
        )
    )


def other_leases(app_pk: int | OuterRef, watch_pk: int | OuterRef) -> QuerySet[AppRepository]:
    """Return the app's watches that a worker owns, except this one."""
    return AppRepository.objects.filter(app_id=app_pk).leased().exclude(pk=watch_pk)
