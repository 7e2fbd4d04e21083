"""Those who work: workers, the sweep, what waits for them, and what is not to be worked on: paused, or half imported."""

import time
from collections.abc import Iterator

from django.db.models import Count, Min
from django.utils import timezone

from deliveries_app.models import App, AppRepository
from deliveries_app.monitoring.doctor.findings import Finding, fine, problem, warning
from deliveries_app.services import current_pause
from docora.conf.installation import program
from docora.db.clock import from_now
from docora.redis import heartbeat, inspect
from docora.redis.connection import RedisError
from docora.redis.heartbeat import Signs
from docora.text import counted, format_seconds

_OVERDUE_SECONDS = 60.0
_BETWEEN_LOOKS = 1.0  # seconds; a worker is idle for a moment between two jobs
_NAMED = 5  # apps


def workers() -> Iterator[Finding]:
    alive = [worker for worker in inspect.read_workers() if not worker.is_gone]
    if not alive:
        yield problem(
            "No sync worker is running: nothing is sent.",
            f"Start {program()} up, or {program()} rqworker high default low.",
        )
        return
    hosts = sorted({worker.host for worker in alive})
    number = "1 worker is" if len(alive) == 1 else f"{len(alive)} workers are"
    yield fine(f"{number} alive, on {', '.join(hosts[:_NAMED])}{' and others' if len(hosts) > _NAMED else ''}.")


def sweep() -> Iterator[Finding]:
    signs = _signs()
    advice = f"Start {program()} up, or {program()} sweep; if it runs, its log says what it waits for."
    if signs.sweep_age is None:
        yield problem("The sweep has not looked for a day, if ever: nothing begins by itself.", advice)
    elif signs.sweep_is_late:
        late = format_seconds(signs.sweep_age)
        yield problem(f"The sweep looked {late} ago for the last time: nothing begins by itself.", advice)
    else:
        yield fine(f"The sweep looked {format_seconds(signs.sweep_age)} ago.")


def backlog() -> Iterator[Finding]:
    """Repositories that could have been synced for a while: does nobody take them, or is there too much to do?"""
    overdue = AppRepository.objects.due().free().filter(next_sync_at__lte=from_now(-_OVERDUE_SECONDS))
    facts = overdue.aggregate(count=Count("pk"), oldest=Min("next_sync_at"))
    if not facts["count"]:
        yield fine("No repository has been waiting for a worker for long.")
        return
    waited = format_seconds((timezone.now() - facts["oldest"]).total_seconds())
    number = "1 repository has" if facts["count"] == 1 else f"{facts['count']:,} repositories have"
    words = f"{number} been due for more than {format_seconds(_OVERDUE_SECONDS)}, the longest for {waited}"
    if _nobody_takes_them():
        yield problem(
            f"{words}, though workers are idle.",
            "See that the sweep runs, that all processes have the same REDIS_URL, and that workers listen to high, default and "
            "low; the logs of both say more.",
        )
    else:
        yield warning(f"{words}: workers do not keep up, or there are none.", "Run more of them (up --workers N).")


def _nobody_takes_them() -> bool:
    """At two looks, workers are idle while there are jobs, or no jobs while workers are idle."""
    if not _has_idle_workers(_signs()):
        return False
    time.sleep(_BETWEEN_LOOKS)
    return _has_idle_workers(_signs())


def _has_idle_workers(signs: Signs) -> bool:
    return len(signs.workers) > signs.active and (signs.active == 0 or signs.waiting == 0)


def _signs() -> Signs:
    signs = heartbeat.read()
    if signs is None:
        raise RedisError("Redis went away meanwhile")
    return signs


def pauses() -> Iterator[Finding]:
    pause = current_pause()
    paused = App.objects.filter(ended_at=None, paused=True).order_by("name")
    names = list(paused.values_list("name", flat=True)[: _NAMED + 1])
    if pause:
        since = format_seconds((timezone.now() - pause.since).total_seconds())
        yield warning(f"All syncing was paused by {pause.paused_by}, {since} ago.", "Resume it on the queue page.")
    if names:
        shown = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
        yield warning(f"Nothing is sent to the paused apps: {shown}.", "Resume an app on its page, once it is ready.")
    arriving = AppRepository.objects.alive().filter(arriving=True).count()
    if arriving:
        number = counted(arriving, "watch waits", "watches wait")
        words = f"{number} for the rest of the import: nothing is checked or sent before that."
        yield warning(words, f"Unless it is under way just now, run {program()} import_docora again.")
    if not pause and not names and not arriving:
        yield fine("Nothing is paused.")
