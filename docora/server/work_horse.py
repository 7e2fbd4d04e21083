"""A work-horse: the child process in which a worker performs many jobs, several at a time."""

import contextlib
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from django.db import connections
from redis.exceptions import RedisError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue

from docora.db.connection import close_broken_connections
from docora.process import request_stop, stopping
from docora.redis import queues

logger = logging.getLogger(__name__)

JOBS = 5000
SECONDS = 600.0
"""A work-horse takes no further job after about this many jobs or seconds, so that memory leaks stay bounded."""
HAND_OVER_AFTER = 5.0
"""Seconds after which the remaining jobs are asked to stop, as on SIGTERM.

Otherwise a job that waits for a hanging server would block the worker for minutes.
"""
HANGS_AFTER = 3900.0  # repacking a mirror, which cannot stop, may take an hour
"""A job that still runs this many seconds after it was asked to stop is hung.

This process then exits, so that its worker can continue.
"""
_CHECK_SECONDS = 0.25  # between two checks; longer than a job that waits for no server takes
_BUSY = 0.5  # of a core
_MOST_WAITED = 9
"""Waiting for a CPU counts at most as this many times the CPU that was used.

Even threads that wait for servers wake now and then. Where CPU is scarce, as under a container's limit, each of them then
waits long for it.
"""

type Assignment = tuple[Job, Queue, Execution]


class WorkHorse:
    """Performs a job, then those that wait behind it, in up to `max_threads` threads.

    Each thread performs one job after another. There is one thread at first. More are started while jobs wait, none ends
    and this process hardly needs the CPU: its jobs are then waiting for servers and must not block others. With a busy
    CPU, even one that other processes keep busy, more threads would gain nothing. Tenants share the threads.
    """

    def __init__(
        self,
        max_threads: int,
        perform: Callable[[Job, Queue, Execution], None],
        take: Callable[[], Assignment | None],
    ) -> None:
        self._max_threads = max_threads
        self._perform, self._take = perform, take
        self._changed = threading.Condition()
        self._taking = threading.Lock()
        self._by_tenant: Counter[str] = Counter()  # threads by tenant
        self._threads = 0
        self._taken = 1
        self._ended = 0
        # Random, so that workers do not all wait for their last jobs at the same time.
        self._ends_at = time.monotonic() + SECONDS * random.uniform(0.75, 1.25)  # noqa: S311  no secret

    def run(self, first: Assignment) -> None:
        """Perform `first` and the jobs that wait. Return once no more jobs wait or may be taken, and all have ended."""
        self._by_tenant[queues.tenant_of(first[0])] = 1
        self._start_thread(first)
        checked_at, cpu, ended = time.monotonic(), _CpuTime.now(), 0
        over_at = 0.0
        while not self._is_done():
            now, cpu_now = time.monotonic(), _CpuTime.now()
            over_at = over_at or (now if self._is_over else 0.0)
            if over_at and now - over_at > HAND_OVER_AFTER:
                request_stop()
            if over_at and now - over_at > HAND_OVER_AFTER + HANGS_AFTER:
                logger.error("work_horse_hangs", extra={"jobs": self._threads})
                os._exit(1)
            is_waiting = self._ended == ended and cpu_now.needed_since(cpu) < _BUSY * (now - checked_at)
            checked_at, cpu, ended = now, cpu_now, self._ended
            if not is_waiting:
                continue
            for _ in range(min(self._threads, self._max_threads - self._threads)):  # at most double their number
                if following := self._next():
                    self._start_thread(following)

    def end_soon(self) -> None:
        """Take no further job."""
        self._ends_at = 0.0

    def can_take(self, job: Job) -> bool:
        """Return whether the job's tenant can use one more thread.

        While several tenants have jobs here, none uses more than its share. The last thread is kept for a tenant
        without one.
        """
        with self._changed:
            used = self._by_tenant[queues.tenant_of(job)]
            share = max(1, self._max_threads // max(1, len(self._by_tenant)))
            return not used or (used < share and self._by_tenant.total() < self._max_threads - 1)

    def _is_done(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._threads == 0, _CHECK_SECONDS)

    def _start_thread(self, first: Assignment) -> None:
        with self._changed:
            self._threads += 1
        threading.Thread(target=self._work, args=(first,), daemon=True).start()

    def _work(self, assignment: Assignment | None) -> None:
        try:
            while assignment:
                try:
                    self._perform(*assignment)
                finally:
                    with self._changed:
                        self._by_tenant -= Counter([queues.tenant_of(assignment[0])])  # drops tenants without threads
                self._ended += 1
                close_broken_connections()
                assignment = self._next()
        except RedisError as error:  # RQ could not record the job's start or end; the worker waits for Redis
            logger.warning("work_horse_without_redis", extra={"cause": str(error)})
        finally:
            connections.close_all()
            with self._changed:
                self._threads -= 1
                self._changed.notify()

    @property
    def _is_over(self) -> bool:
        return self._taken >= JOBS or time.monotonic() > self._ends_at

    def _next(self) -> Assignment | None:
        if stopping() or self._is_over:
            return None
        with self._taking:
            try:
                following = self._take()
            except RedisError:  # the jobs that run need only the database
                return None
            if following:
                self._taken += 1
                with self._changed:
                    self._by_tenant[queues.tenant_of(following[0])] += 1
        return following


@dataclass(frozen=True)
class _CpuTime:
    """Seconds of CPU that this process and its ended children (mostly git) have used, and seconds waited for a CPU."""

    used: float
    waited: float

    @classmethod
    def now(cls) -> Self:
        waited = 0
        for thread in Path("/proc/self/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                waited += int(thread.read_text().split()[1])
        times = os.times()
        return cls(time.process_time() + times.children_user + times.children_system, waited / 1e9)

    def needed_since(self, before: Self) -> float:
        """Return how many seconds of CPU this process would have used since then if it had not had to wait for one."""
        used = self.used - before.used
        waited = max(0.0, self.waited - before.waited)  # the time of threads that have ended is missing
        return used + min(waited, _MOST_WAITED * used)
