"""Workers as processes of their own, and what befalls them while the client works on one of their notifications."""

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

from deliveries_app.models import AppRepository
from deliveries_app.sync import responses, sender
from deliveries_app.sync.attempt import sync
from docora.http.client import Request
from docora.server import worker
from tests.faults.journal import Journal
from tests.support.histories import let_lease_run_out
from tests.support.processes import forked
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.world import World

TIMEOUT = 0.4  # seconds that the app has for an answer
REST = 0.6  # seconds that a path rests after that, longer than the client ever thinks
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "freeze": signal.SIGSTOP}


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Short time-outs and rests, in this process and in those that it forks."""
    patch.setattr(sender, "Request", _quick)
    patch.setattr(sender, "REST_AFTER_TIMEOUT", REST)
    patch.setattr(responses, "REST_AFTER_TIMEOUT", REST)


@dataclass(frozen=True)
class Fate:
    """What befalls a worker at the client's notification `at`; `kept`: the client keeps that one all the same.

    `kind`: "kill", "term", "freeze", or what else happens meanwhile, by the name of a method of the universe.
    """

    kind: str
    at: int = 1
    kept: bool = True


@dataclass
class _Work:
    """One attempt in a process of its own."""

    watch: AppRepository
    fate: Fate | None
    pid: int = 0
    seen: int = 0
    befallen: bool = False


class Workers:
    """`meanwhile` does what a fate names that is no signal; `excused`: a worker may end with an error, for a reason."""

    def __init__(self, world: World, journal: Journal, events: Counter[str], meanwhile: Callable[[str], None]) -> None:
        self._world, self._journal, self._events, self._meanwhile = world, journal, events, meanwhile
        self._lock = threading.Lock()
        self._at_work: list[_Work] = []
        # For the thread that waits for the workers: a server that another one starts would end with that thread.
        self._errands: queue.SimpleQueue[tuple[str, threading.Event]] = queue.SimpleQueue()
        self.excused = False

    def work(self, fates: Sequence[tuple[AppRepository, Fate | None]]) -> None:
        """At these watches at once, each with its fate, until none of them is left."""
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
            if one.befallen and one.fate and one.fate.kind == "kill":
                self._journal.crashed((one.watch.app.app_id, str(one.watch.repository)), self._world.receiver.log)
        AppRepository.objects.filter(lease_until__isnull=False).update(lease_until=None)

    def befall(self, note: Notification) -> Answer | None:
        """In a thread of the client that works on the notification: what is answered if that was the moment."""
        with self._lock:
            one = next((one for one in self._at_work if _is_about(note, one.watch)), None)
            if one is None or one.fate is None or one.befallen:
                return None
            one.seen += 1
            if one.seen < one.fate.at:
                return None
            one.befallen = True
            fate = one.fate
        if fate.kind in _SIGNALS:
            self._events[f"worker: {fate.kind}"] += 1
            os.kill(one.pid, _SIGNALS[fate.kind])
        else:
            self._events["interference"] += 1
            done = threading.Event()
            self._errands.put((fate.kind, done))
            assert done.wait(60), f"nobody saw to {fate.kind}"
        return None if fate.kept else Answer(close=True)

    def _wait_for(self, one: _Work) -> None:
        until = time.monotonic() + 60
        while True:
            pid, status = os.waitpid(one.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(status):
                self._overtake(one)
            elif pid:
                break
            self._run_errands()
            assert time.monotonic() < until, f"a worker did not end: {one}"
            time.sleep(0.005)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0 or self.excused, f"a worker ended with {status}: {one}"

    def _run_errands(self) -> bool:
        """False, so that one may go on waiting."""
        while not self._errands.empty():
            what, done = self._errands.get()
            self._meanwhile(what)
            done.set()
        return False

    def _overtake(self, one: _Work) -> None:
        """The worker is frozen beyond its lease, another one does the work, and then it wakes up."""
        self._journal.zombies.add((one.watch.app.app_id, str(one.watch.repository)))
        let_lease_run_out(one.watch)
        self._world.make_due(one.watch)
        sync(one.watch.pk)
        connections.close_all()
        os.kill(one.pid, signal.SIGCONT)

    def _let_the_client_finish(self) -> None:
        """A dead worker's last requests may still be worked on."""
        receiver = self._world.receiver
        wait_for(lambda: self._run_errands() or sum(receiver._in_flight.values()) == 0, timeout=20)
        time.sleep(0.02)


def _quick(*args: object, **kwargs: object) -> Request:
    return Request(*args, timeout=TIMEOUT, **kwargs)  # type: ignore[arg-type]


def _attempt(watch_pk: int) -> None:
    """What a work-horse does with its job."""
    worker._stopping.clear()
    signal.signal(signal.SIGTERM, worker.request_stop)
    sync(watch_pk)


def _is_about(note: Notification, watch: AppRepository) -> bool:
    return (note.app_id, note.repository) == (watch.app.app_id, str(watch.repository))
