"""Run workers as processes, and kill, stop, freeze or cut them off at one of their notifications or database statements."""

import contextlib
import mmap
import os
import queue
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection, connections
from django.db.backends.signals import connection_created

from deliveries_app.models import AppRepository
from deliveries_app.sync import claim, dead_processes, lease, notification, pace, sender, slots
from deliveries_app.sync.dead_processes import end_dead_leases
from docora import process
from docora.db import clock
from docora.db.connection import CONNECTION_ERRORS
from docora.http.client import Request
from docora.redis import queues
from docora.redis.connection import connection as redis_connection
from docora.server import worker
from tests.faults.clients import Clients
from tests.faults.journal import Journal
from tests.support.histories import let_lease_run_out
from tests.support.processes import children, forked
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.syncing import sync

TIMEOUT = 0.4  # seconds that the app has to answer
HOLD = 0.6  # seconds that a path is held after a timeout, longer than the client ever takes
LATE = 0.25  # seconds that the client takes to handle a request whose sender was killed
FROZEN = 3600.0  # seconds that a frozen worker loses
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "freeze": signal.SIGSTOP}

DEADLOCK = "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END $$"

type Step = tuple[str, tuple[Any, ...]]
"""The name of a method of `Universe`, and its arguments."""


def use_short_timeouts(patch: pytest.MonkeyPatch) -> None:
    """Use short timeouts and holds in this process and in those that it forks."""
    patch.setattr(sender, "Request", _short_request)
    patch.setattr(sender, "HOLD_AFTER_TIMEOUT", HOLD)
    patch.setattr(notification, "HOLD_AFTER_TIMEOUT", HOLD)
    patch.setattr(lease, "HOLD_AFTER_TIMEOUT", HOLD)
    patch.setattr(dead_processes, "HOLD_AFTER_TIMEOUT", HOLD)
    patch.setattr(pace, "_LONGEST_GAP", 0.1)  # a client that refuses at random is slowed down to this


@dataclass(frozen=True)
class Fate:
    """What happens to a worker at its notification number `at`, or at its database statement number `at`.

    `kind` is "kill", "term", "freeze", "cut" (its database connection ends), "deadlock" (PostgreSQL makes its statement fail), or
    "meanwhile": then `step` happens. With `kept`, the client stores the notification. After a kill that is `noticed`, another
    worker continues at once, while the client still handles the request; before that, `step` happens, if there is one.
    """

    kind: str
    at: int = 1
    in_statement: bool = False
    kept: bool = True
    noticed: bool = False
    step: Step | None = None


class _Shared:
    """A number that a process shares with those that it forks."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> float:
        return struct.unpack("d", self._memory[:8])[0]

    @value.setter
    def value(self, value: float) -> None:
        self._memory[:8] = struct.pack("d", value)


@dataclass
class _Work:
    """One worker process: for one attempt on a watch or, without one, for all jobs that wait."""

    watch: AppRepository | None
    fate: Fate | None
    pid: int = 0
    seen: int = 0
    applied: bool = False
    ended: bool = False  # and waited for, so that another process may have its pid
    lost_seconds: _Shared = field(default_factory=_Shared)
    reached: _Shared = field(default_factory=_Shared)

    def begin(self) -> None:
        """Run in the worker's process."""
        real = clock.boot_seconds
        for module in (clock, claim, lease, slots):
            module.boot_seconds = lambda: real() + self.lost_seconds.value  # type: ignore[attr-defined]
        if self.fate and self.fate.in_statement:
            _Statements(self.fate, self.reached).install()
        process._stopping.clear()
        if self.watch is None:
            _perform_jobs()
            return
        signal.signal(signal.SIGTERM, process.request_stop)
        with contextlib.suppress(*CONNECTION_ERRORS):  # as a job that loses its connection ends
            sync(self.watch.pk)


class _Statements:
    """Counts the statements of a worker and lets its fate happen at one of them."""

    def __init__(self, fate: Fate, reached: _Shared) -> None:
        self._fate, self._reached = fate, reached
        self._count = 0

    def install(self) -> None:
        connection_created.connect(self._attach, weak=False)

    def _attach(self, connection: Any, **_: object) -> None:
        connection.execute_wrappers.append(self._execute)

    def _execute(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        self._count += 1
        kind = self._fate.kind
        # While this worker holds locks, a step might wait for it for ever.
        may_happen = kind != "meanwhile" or not context["connection"].in_atomic_block
        if self._count >= self._fate.at and may_happen and not self._reached.value:
            self._reached.value = 1.0
            if kind == "cut":
                if context["connection"].vendor == "postgresql":
                    execute("SELECT pg_terminate_backend(pg_backend_pid())", None, False, context)
            elif kind == "deadlock":
                if context["connection"].vendor == "postgresql":
                    execute(DEADLOCK, None, False, context)
            else:
                os.kill(os.getpid(), SIGNALS.get(kind, signal.SIGSTOP))
        return execute(sql, params, many, context)


class Workers:
    """Runs workers. `meanwhile` runs a step of a fate. With `may_fail`, a worker may exit with an error."""

    def __init__(
        self, clients: Clients, journal: Journal, events: Counter[str], meanwhile: Callable[[Step], None]
    ) -> None:
        self._clients, self._journal, self._events, self._meanwhile = clients, journal, events, meanwhile
        self._lock = threading.Lock()
        self._at_work: list[_Work] = []
        # Run by the thread that waits for the workers: a server ends with the thread that started it.
        self._actions: queue.SimpleQueue[tuple[Step, threading.Event]] = queue.SimpleQueue()
        self.may_fail = False

    def work(self, fates: Sequence[tuple[AppRepository | None, Fate | None]]) -> None:
        """Run a worker for each of these watches at the same time, each with its fate, and wait for their end.

        Instead of a watch, None is a real worker that performs all jobs.
        """
        self._at_work = [_Work(watch, fate) for watch, fate in fates]
        self._journal.begin(self._clients.log, many=any(watch is None for watch, _ in fates))
        for one in self._at_work:
            one.pid = forked(one.begin)
        for one in self._at_work:
            self._wait_for(one)
        at_work, self._at_work = self._at_work, []
        self.let_the_clients_finish()
        for one in at_work:
            if one.watch and one.applied and one.fate and one.fate.kind == "kill" and not one.fate.noticed:
                self._journal.crashed((one.watch.app.app_id, str(one.watch.repository)), self._clients.log)
        end_dead_leases()

    def apply_fate(self, note: Notification) -> Answer | None:
        """Apply a fate if this is its notification, and return the client's answer. Runs in a thread of the client."""
        with self._lock:
            one = next((one for one in self._at_work if not one.ended and _is_about(note, one.watch)), None)
            if one is None or one.fate is None or one.applied or one.fate.in_statement:
                return None
            # The notification may be the other real worker's. This one then has no work-horse, and may be about to end.
            target = one.pid if one.watch else next(children(one.pid), 0)
            if not target:
                return None
            one.seen += 1
            if one.seen < one.fate.at:
                return None
            one.applied = True
            fate = one.fate
            if fate.kind in SIGNALS:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(target, SIGNALS[fate.kind])
        self._events[f"worker: {fate.kind}"] += 1
        if fate.kind not in SIGNALS:
            done = threading.Event()
            self._actions.put((_step_of(fate), done))
            assert done.wait(60), f"{fate} did not run"
        elif fate.noticed:
            time.sleep(LATE)
        return None if fate.kept else Answer(close=True)

    def let_the_clients_finish(self) -> None:
        """Wait until the clients have handled a dead worker's last requests."""
        wait_for(lambda: self._run_actions() or sum(self._clients._in_flight.values()) == 0, timeout=20)
        time.sleep(0.02)

    def _wait_for(self, one: _Work) -> None:
        until = time.monotonic() + 60
        while True:
            with self._lock:
                pid, status = os.waitpid(one.pid, os.WNOHANG | os.WUNTRACED)
                one.ended = bool(pid) and not os.WIFSTOPPED(status)
            if one.ended:
                break
            if pid:
                self._stopped(one)
            self._run_actions()
            assert time.monotonic() < until, f"a worker did not end: {one}"
            time.sleep(0.003)
        if one.fate and one.fate.in_statement and one.reached.value and not one.applied:
            one.applied = True
            self._events[f"worker: {one.fate.kind}"] += 1
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed and one.watch and one.applied and one.fate and one.fate.noticed:
            self._sync_after_death(one.watch, one.fate)
        assert killed or status == 0 or self.may_fail, f"a worker ended with {status}: {one}"

    def _stopped(self, one: _Work) -> None:
        assert one.watch is not None
        assert one.fate is not None
        if one.fate.kind == "freeze":
            self._sync_elsewhere(one, one.watch)
        else:
            one.applied = True
            self._events["worker: meanwhile"] += 1
            self._meanwhile(_step_of(one.fate))
            connections.close_all()
        os.kill(one.pid, signal.SIGCONT)

    def _sync_after_death(self, watch: AppRepository, fate: Fate) -> None:
        """Another worker of this machine notices that the process is gone, and syncs the watch at once."""
        self._events["death noticed"] += 1
        log, name = self._clients.log, (watch.app.app_id, str(watch.repository))
        self._journal.crashed(name, log)
        end_dead_leases()
        if fate.step:
            self._meanwhile(fate.step)
        self._journal.begin(log, beside_the_dead=name)
        sync(watch.pk)
        connections.close_all()

    def _run_actions(self) -> bool:
        """Run pending actions. Return False, so that it can be part of a wait condition."""
        while not self._actions.empty():
            what, done = self._actions.get()
            self._meanwhile(what)
            connections.close_all()
            done.set()
        return False

    def _sync_elsewhere(self, one: _Work, watch: AppRepository) -> None:
        """The worker is frozen beyond its lease, another one does the work, and then it wakes up."""
        self._journal.zombies.add((watch.app.app_id, str(watch.repository)))
        one.lost_seconds.value = FROZEN
        _end_idle_transactions()
        let_lease_run_out(watch)
        sync(watch.pk)
        connections.close_all()


def _step_of(fate: Fate) -> Step:
    assert fate.kind in {"meanwhile", "cut"}
    return fate.step or ("cut_connections", ())


def _end_idle_transactions() -> None:
    """End the transaction of a frozen worker, as PostgreSQL does after `LEASE_SECONDS`."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
            )


def _perform_jobs() -> None:
    """Perform the jobs that wait, as a real worker with a work-horse."""
    waiting = [queues._queue(name) for name in queues.QUEUES]
    worker.DocoraWorker(waiting, connection=redis_connection()).work(burst=True, logging_level="WARNING")


def _short_request(*args: object, **kwargs: object) -> Request:
    return Request(*args, timeout=TIMEOUT, **kwargs)  # type: ignore[arg-type]


def _is_about(note: Notification, watch: AppRepository | None) -> bool:
    return watch is None or (note.app_id, note.repository) == (watch.app.app_id, str(watch.repository))
