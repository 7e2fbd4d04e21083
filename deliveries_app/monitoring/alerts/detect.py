"""Find problems and when they began, with a constant number of statements.

Each kind of alert has one open row per subject with the problem. A round locks the row of `AlertRound`, so rounds run one after
another and their numbers become visible in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Least, Now
from django.utils import timezone

from deliveries_app.models import Alert, AlertKind, AlertRound, App, AppRepository, Status
from deliveries_app.monitoring import health
from deliveries_app.services.app_settings import PAUSED_BY_APP
from docora.db.clock import from_now
from docora.redis import heartbeat
from docora.redis.heartbeat import Signs
from repositories_app.models import HostOutage, Repository
from repositories_app.services import host_is_down

EVERY_SECONDS = 30.0
_MIN_INTERVAL_SECONDS = 20.0  # two processes at the same moment run only one round
PATIENCE_SECONDS = 60.0
"""How long a problem of Docora itself must last before it is reported: after a start, all heartbeats are missing."""


@dataclass(frozen=True)
class Subjects:
    """The subjects of one kind of alert: those that have the problem now, and those whose open alert stays open.

    A deleted subject is in neither, so its alert ends.
    """

    wrong: QuerySet[Any]
    not_recovered: QuerySet[Any]


def detect() -> None:
    """Run one round of detection, unless another process has just done so."""
    docora_problems = _docora_problems(heartbeat.read())  # first, because Redis and the statements below may be slow
    with transaction.atomic():
        number = _begin_round()
        if number is None:
            return
        now = timezone.now()
        open_kinds = set(Alert.objects.filter(ended_at=None).values_list("kind", flat=True).distinct())
        changed = 0
        if AlertKind.FAILING in open_kinds:
            _update_causes()
        for kind, subjects in _subjects(now).items():
            if kind in open_kinds:
                # With stale statistics, PostgreSQL would run a NOT EXISTS as a full scan for each row.
                recovered = Alert.objects.filter(kind=kind).exclude(
                    subject__in=subjects.not_recovered.order_by().values("pk")
                )
                changed += _close(recovered, number, now)
            changed += _open(kind, subjects, number, now)
        for kind, is_wrong in docora_problems.items():
            if is_wrong and kind not in open_kinds:
                Alert.objects.create(kind=kind, since=now)
            elif is_wrong is False and kind in open_kinds:
                changed += _close(Alert.objects.filter(kind=kind), number, now)
            elif is_wrong is None and kind in open_kinds:  # an unconfirmed one may have ended meanwhile
                Alert.objects.filter(kind=kind, opened=None).delete()
        patience = timedelta(seconds=PATIENCE_SECONDS)
        # A time in the future was written by a wrong clock.
        early = Q(since__gt=now - patience, since__lte=now + patience)
        changed += Alert.objects.filter(opened=None).exclude(early).update(opened=number, since=Least("since", now))
        if changed:
            AlertRound.objects.update(number=number)


def _begin_round() -> int | None:
    """Return this round's number and lock its row until the transaction ends. Return None if it is too early for a round."""
    long_ago = timezone.now() - timedelta(days=1)
    last, _ = AlertRound.objects.select_for_update().get_or_create(defaults={"detected_at": long_ago})
    # A time in the future was written by a wrong clock.
    early = Q(detected_at__gt=from_now(-_MIN_INTERVAL_SECONDS), detected_at__lte=Now())
    return last.number + 1 if AlertRound.objects.exclude(early).update(detected_at=Now()) else None


def _subjects(now: datetime) -> Mapping[AlertKind, Subjects]:
    watches, apps = AppRepository.objects.alive(), App.objects.filter(ended_at=None).only("name")
    long_ago = now - timedelta(seconds=settings.ALERT_AFTER_SECONDS)
    long_failing = watches.filter(failing_since__lte=long_ago)
    # Those after HTTP 410: an administrator's pause has no reason.
    paused = apps.filter(paused=True).exclude(paused_reason__in=["", PAUSED_BY_APP])
    # Nothing is sent to an app without watches, so nothing would show that its endpoint is back up.
    down = apps.filter(Exists(watches.filter(app=OuterRef("pk"))), down_count__gt=0)
    waits_for_commit = Q(status=Status.PENDING, next_sync_at=None)  # which may never come
    unfinished = Q(failing_since__isnull=False) | ~Q(status=Status.SYNCED) & ~waits_for_commit
    watched = Repository.objects.filter(Exists(watches.filter(repository=OuterRef("pk"))))
    circuits = watched.filter(circuit_open_until__isnull=False)  # also while waiting for the next attempt
    outages = HostOutage.objects.annotate(failing_since=F("since"))
    named = long_failing.select_related("app", "repository").only(
        "failing_since", "root_cause", "app__name", "repository__owner", "repository__name"
    )
    return {
        # A new token clears the failure immediately, but the alert ends only when a sync has succeeded.
        AlertKind.FAILING: Subjects(named, watches.filter(unfinished)),
        AlertKind.APP_PAUSED: Subjects(paused, apps.filter(paused=True)),  # an administrator may take over the pause
        AlertKind.ENDPOINT_DOWN: Subjects(down.filter(Exists(long_failing.filter(app=OuterRef("pk")))), down),
        # A host that is down has an alert of its own.
        AlertKind.CIRCUIT_OPEN: Subjects(circuits.exclude(host_is_down("canonical_url")), circuits),
        AlertKind.GIT_HOST_DOWN: Subjects(outages.filter(since__lte=long_ago), outages),
    }


def _docora_problems(signs: Signs | None) -> dict[AlertKind, bool | None]:
    """Return which problems Docora itself has; None means unknown."""
    has_disk_problem = bool(health.disk_problem(signs))
    return {
        AlertKind.REDIS_DOWN: signs is None,
        AlertKind.NO_WORKER: not signs.workers if signs else None,
        AlertKind.SWEEP_LATE: signs.sweep_is_late if signs else None,
        AlertKind.DISK: has_disk_problem if signs or has_disk_problem else None,
    }


def _update_causes() -> None:
    """Store the current causes of failing watches, for reminders. A watch that has recovered keeps its last cause."""
    watch = AppRepository.objects.filter(pk=OuterRef("subject")).order_by()
    current = watch.exclude(root_cause="").values("root_cause")[:1]
    alerts = Alert.objects.filter(kind=AlertKind.FAILING, ended_at=None).annotate(current=Subquery(current))
    alerts.filter(current__isnull=False).exclude(cause=F("current")).update(cause=F("current"))


def _open(kind: AlertKind, subjects: Subjects, number: int, now: datetime) -> int:
    """Add a row for each wrong subject that has none. Return the number of new rows."""
    known = Alert.objects.filter(kind=kind, ended_at=None).values("subject")
    new = [
        Alert(
            kind=kind,
            subject=row.pk,
            name=str(row),
            cause=getattr(row, "root_cause", ""),
            since=getattr(row, "failing_since", now),
            opened=number,
        )
        for row in subjects.wrong.exclude(pk__in=known).order_by()
    ]
    return len(Alert.objects.bulk_create(new))


def _close(alerts: QuerySet[Alert], number: int, now: datetime) -> int:
    """Close the open alerts among these, and delete those that were never confirmed. Return how many were closed."""
    still_open = alerts.filter(ended_at=None)
    still_open.filter(opened=None).delete()
    return still_open.update(closed=number, ended_at=now)
