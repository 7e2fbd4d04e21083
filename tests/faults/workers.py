"""Run workers as processes, and kill, stop or freeze them while the client handles one of their notifications."""

import contextlib
import os
import queue
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from django.db import connections
from django.db.models import F

from deliveries_app.models import AppRepository
from deliveries_app.sync import lease, pace, responses, sender
from deliveries_app.sync.attempt import sync
from deliveries_app.sync.lease import end_dead_leases
from docora.db.connection import CONNECTION_ERRORS
from docora.http.client import Request
from docora.server import worker
from tests.faults.journal import Journal
from tests.support.histories import let_lease_run_out
from tests.support.processes import forked
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.world import World

TIMEOUT = 0.4  # seconds that the app has to answer
HOLD = 0.6  # seconds that a path is held after a timeout, longer than the client ever takes
LATE = 0.25  # seconds that the client takes to handle a request whose sender was killed
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "freeze": signal.SIGSTOP}


def use_short_timeouts(patch: pytest.MonkeyPatch) -> None:
    """Use short timeouts and holds in this process and in those that it forks."""
    patch.setattr(sender, "Request", _short_request)
    patch.setattr(sender, "REST_AFTER_TIMEOUT", HOLD)
    patch.setattr(responses, "REST_AFTER_TIMEOUT", HOLD)
    patch.setattr(lease, "REST_AFTER_TIMEOUT", HOLD)
    patch.setattr(pace, "_LONGEST_GAP", 0.1)  # a client that refuses at random is slowed down to this


@dataclass(frozen=True)
class Fate:
    """What happens to a worker at the client's notification number `at`. With `kept`, the client stores that one.

    `kind` is "kill", "term", "freeze" or the name of a `Universe` method to run. After a kill that is `noticed`, another
    worker continues at once, while the client still handles the request. Before that, the method `first` runs, if any.
    """

    kind: str
    at: int = 1
    kept: bool = True
    noticed: bool = False
    first: str = ""


@dataclass
class _Work:
    """One attempt in its own process."""

    watch: AppRepository
    fate: Fate | None
    pid: int = 0
    seen: int = 0
    applied: bool = False


class Workers:
    """Runs workers. `meanwhile` runs a fate that is not a signal. With `may_fail`, a worker may exit with an error."""

    def __init__(self, world: World, journal: Journal, events: Counter[str], meanwhile: Callable[[str], None]) -> None:
        self._world, self._journal, self._events, self._meanwhile = world, journal, events, meanwhile
        self._lock = threading.Lock()
        self._at_work: list[_Work] = []
        # Run by the thread that waits for the workers: a server ends with the thread that started it.
        self._actions: queue.SimpleQueue[tuple[str, threading.Event]] = queue.SimpleQueue()
        self.may_fail = False

    def work(self, fates: Sequence[tuple[AppRepository, Fate | None]]) -> None:
        """Run workers for these watches at the same time, each with its fate, and wait for their end."""
        for watch, _ in fates:
            self._world.make_due(watch)
        self._at_work = [_Work(watch, fate) for watch, fate in fates]
        self._journal.begin(self._world.receiver.log)
        for one in self._at_work:
            one.pid = forked(lambda pk=one.watch.pk: _attempt(pk))
        for one in self._at_work:
            self._wait_for(one)
        at_work, self._at_work = self._at_work, []
        self._let_the_client_finish()
        for one in at_work:
            if one.applied and one.fate and one.fate.kind == "kill" and not one.fate.noticed:
                self._journal.crashed((one.watch.app.app_id, str(one.watch.repository)), self._world.receiver.log)
        end_dead_leases()
        AppRepository.objects.filter(lease_until__isnull=False).update(lease_until=F("created_at"))

    def apply_fate(self, note: Notification) -> Answer | None:
        """Apply a fate if this is its notification, and return the client's answer. Runs in a thread of the client."""
        with self._lock:
            one = next((one for one in self._at_work if _is_about(note, one.watch)), None)
            if one is None or one.fate is None or one.applied:
                return None
            one.seen += 1
            if one.seen < one.fate.at:
                return None
            one.applied = True
            fate = one.fate
        if fate.kind in SIGNALS:
            self._events[f"worker: {fate.kind}"] += 1
            os.kill(one.pid, SIGNALS[fate.kind])
            if fate.noticed:
                time.sleep(LATE)
        else:
            self._events["interference"] += 1
            done = threading.Event()
            self._actions.put((fate.kind, done))
            assert done.wait(60), f"{fate.kind} did not run"
        return None if fate.kept else Answer(close=True)

    def _wait_for(self, one: _Work) -> None:
        until = time.monotonic() + 60
        while True:
            pid, status = os.waitpid(one.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                self._sync_elsewhere(one)
            elif pid:
                break
            self._run_actions()
            assert time.monotonic() < until, f"a worker did not end: {one}"
            time.sleep(0.005)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed and one.applied and one.fate and one.fate.noticed:
            self._go_on(one, one.fate)
        assert killed or status == 0 or self.may_fail, f"a worker ended with {status}: {one}"

    def _go_on(self, one: _Work, fate: Fate) -> None:
        """Another worker of this machine notices that the process is gone, and syncs the watch at once."""
        self._events["death noticed"] += 1
        log, watch = self._world.receiver.log, (one.watch.app.app_id, str(one.watch.repository))
        self._journal.crashed(watch, log)
        end_dead_leases()
        if fate.first:
            self._meanwhile(fate.first)
        self._world.make_due(one.watch)
        self._journal.begin(log, beside_the_dead=watch)
        sync(one.watch.pk)
        connections.close_all()

    def _run_actions(self) -> bool:
        """Run pending actions. Return False, so that it can be part of a wait condition."""
        while not self._actions.empty():
            what, done = self._actions.get()
            self._meanwhile(what)
            done.set()
        return False

    def _sync_elsewhere(self, one: _Work) -> None:
        """The worker is frozen beyond its lease, another one does the work, and then it wakes up."""
        self._journal.zombies.add((one.watch.app.app_id, str(one.watch.repository)))
        let_lease_run_out(one.watch)
        self._world.make_due(one.watch)
        sync(one.watch.pk)
        connections.close_all()
        os.kill(one.pid, signal.SIGCONT)

    def _let_the_client_finish(self) -> None:
        """Wait until the client has handled a dead worker's last requests."""
        receiver = self._world.receiver
        wait_for(lambda: self._run_actions() or sum(receiver._in_flight.values()) == 0, timeout=20)
        time.sleep(0.02)


def _short_request(*args: object, **kwargs: object) -> Request:
    return Request(*args, timeout=TIMEOUT, **kwargs)  # type: ignore[arg-type]


def _attempt(watch_pk: int) -> None:
    """Run a sync as a work-horse does: it ends without an error if its database connection is lost.

    PostgreSQL ends the session of a worker that was frozen inside a transaction.
    """
    worker._stopping.clear()
    signal.signal(signal.SIGTERM, worker.request_stop)
    with contextlib.suppress(*CONNECTION_ERRORS):
        sync(watch_pk)


def _is_about(note: Notification, watch: AppRepository) -> bool:
    return (note.app_id, note.repository) == (watch.app.app_id, str(watch.repository))
