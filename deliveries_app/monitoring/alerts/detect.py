"""Find problems and when they began, with a constant number of statements.

Each kind of alert has one open row per subject with the problem. One INSERT … SELECT adds the missing rows, and one UPDATE
closes the rows of subjects that have recovered. A round locks the row of `AlertRound`, so rounds run one after another and their
numbers become visible in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import (
    BigIntegerField,
    CharField,
    DateTimeField,
    Exists,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Value,
)
from django.db.models.functions import Concat, Now
from django.utils import timezone

from deliveries_app.models import Alert, AlertKind, AlertRound, App, AppRepository, Status
from deliveries_app.services.app_settings import PAUSED_BY_APP
from docora.db.clock import from_now
from docora.redis import heartbeat
from docora.redis.heartbeat import Signs
from repositories_app.models import Repository

EVERY_SECONDS = 30.0
_MIN_INTERVAL_SECONDS = 20.0  # two processes at the same moment run only one round
PATIENCE_SECONDS = 60.0
"""How long a problem of Docora itself must last before it is reported: after a start, all heartbeats are missing."""


@dataclass(frozen=True)
class Subjects:
    """The subjects of one kind of alert, and the expressions for the columns of their rows.

    `wrong` are the subjects that have the problem now, `not_recovered` those whose open alert stays open. A deleted
    subject is in neither, so its alert ends.
    """

    wrong: QuerySet[Any]
    not_recovered: QuerySet[Any]
    name: Any
    cause: Any = None
    since: Any = None


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
        confirmed = Alert.objects.filter(opened=None, since__lte=now - timedelta(seconds=PATIENCE_SECONDS))
        changed += confirmed.update(opened=number)
        if changed:
            AlertRound.objects.update(number=number)


def _begin_round() -> int | None:
    """Return this round's number and lock its row until the transaction ends. Return None if it is too early for a round."""
    AlertRound.objects.get_or_create(defaults={"detected_at": timezone.now() - timedelta(days=1)})
    # A time in the future was written by a wrong clock.
    early = Q(detected_at__gt=from_now(-_MIN_INTERVAL_SECONDS), detected_at__lte=Now())
    if not AlertRound.objects.exclude(early).update(detected_at=Now()):
        return None
    return AlertRound.objects.get().number + 1


def _subjects(now: datetime) -> Mapping[AlertKind, Subjects]:
    watches, apps = AppRepository.objects.alive(), App.objects.filter(ended_at=None)
    long_failing = watches.filter(failing_since__lte=now - timedelta(seconds=settings.ALERT_AFTER_SECONDS))
    # An administrator's pause has no reason. The others are those after HTTP 410.
    paused = apps.filter(paused=True).exclude(paused_reason__in=["", PAUSED_BY_APP])
    # Nothing is sent to an app without watches, so nothing would show that its endpoint is back up.
    down = apps.filter(Exists(watches.filter(app=OuterRef("pk"))), down_count__gt=0)
    waits_for_commit = Q(status=Status.PENDING, next_sync_at=None)  # which may never come
    unfinished = Q(failing_since__isnull=False) | ~Q(status=Status.SYNCED) & ~waits_for_commit
    watched = Repository.objects.filter(Exists(watches.filter(repository=OuterRef("pk"))))
    circuits = watched.filter(circuit_open_until__isnull=False)  # also while waiting for the next attempt
    return {
        AlertKind.FAILING: Subjects(
            wrong=long_failing,
            # A new token clears the failure immediately, but the alert ends only when a sync has succeeded.
            not_recovered=watches.filter(unfinished),
            name=Concat("repository__owner", Value("/"), "repository__name", Value(" → "), "app__name"),
            cause=F("root_cause"),
            since=F("failing_since"),
        ),
        AlertKind.APP_PAUSED: Subjects(paused, paused, F("name")),
        AlertKind.ENDPOINT_DOWN: Subjects(
            down.filter(Exists(long_failing.filter(app=OuterRef("pk")))), down, F("name")
        ),
        AlertKind.CIRCUIT_OPEN: Subjects(circuits, circuits, Concat("owner", Value("/"), "name")),
    }


def _docora_problems(signs: Signs | None) -> dict[AlertKind, bool | None]:
    """Return which problems Docora itself has; None means unknown."""
    return {
        AlertKind.REDIS_DOWN: signs is None,
        AlertKind.NO_WORKER: not signs.workers if signs else None,
        AlertKind.SWEEP_LATE: signs.sweep_is_late if signs else None,
    }


def _update_causes() -> None:
    """Store the current causes of failing watches, for reminders. A watch that has recovered keeps its last cause."""
    watch = AppRepository.objects.filter(pk=OuterRef("subject")).order_by()
    current = watch.exclude(root_cause="").values("root_cause")[:1]
    alerts = Alert.objects.filter(kind=AlertKind.FAILING, ended_at=None).annotate(current=Subquery(current))
    alerts.filter(current__isnull=False).exclude(cause=F("current")).update(cause=F("current"))


def _open(kind: AlertKind, subjects: Subjects, number: int, now: datetime) -> int:
    """Add a row for each wrong subject that has none. Return the number of new rows.

    The unique index skips the others. A condition in the SELECT would be slow when this statement adds many rows: PostgreSQL
    would plan it for the few rows that existed before.
    """
    values = {
        "kind": Value(kind.value, CharField()),
        "subject": F("pk"),
        "name": subjects.name,
        "cause": subjects.cause or Value(""),
        "since": subjects.since or Value(now, DateTimeField()),
        "opened": Value(number, BigIntegerField()),
    }
    rows = subjects.wrong.order_by().annotate(**{f"new_{name}": value for name, value in values.items()})
    select, parameters = rows.values_list(*(f"new_{name}" for name in values)).query.sql_with_params()
    with connection.cursor() as cursor:
        into = f"INSERT INTO {Alert._meta.db_table} ({', '.join(values)})"
        cursor.execute(f"{into} {select} ON CONFLICT DO NOTHING", parameters)
        return int(cursor.rowcount)


def _close(alerts: QuerySet[Alert], number: int, now: datetime) -> int:
    """Close the open alerts among these, and delete those that were never confirmed. Return how many were closed."""
    still_open = alerts.filter(ended_at=None)
    still_open.filter(opened=None).delete()
    return still_open.update(closed=number, ended_at=now)
