"""The RQ worker as Docora runs it: notices death within seconds, dies with its parent, hands over on SIGTERM, and
outlives an absence of Redis."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Worker, worker_registration
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue

from docora.process import die_with
from docora.redis.queues import WORKER_TTL_SECONDS
from docora.security import crypto

logger = logging.getLogger(__name__)

_stopping = threading.Event()
_worker_name = ""
HAND_OVER_SECONDS = 8.0

maintenance_callbacks: list[Callable[[], None]] = []
"""What else a worker does each time that it looks after its queues: about every ten seconds while it is idle, between two
jobs otherwise. Redis only, and quick."""


def stopping() -> bool:
    """Whether this process was told to stop: a job sends nothing new then and leaves within seconds."""
    return _stopping.is_set()


def request_stop(signum: int = 0, frame: FrameType | None = None) -> None:
    """The SIGTERM handler of a work-horse; never cancels what is under way, only says so."""
    _stopping.set()


def identity() -> str:
    """The name of the worker that this process works for, as Redis knows it; outside of workers, `host:pid` of the
    process itself."""
    return _worker_name or f"{socket.gethostname()}:{os.getpid()}"


def warm_up() -> None:
    """What every work-horse would do anew, done once before they are forked."""
    crypto.derive_keys()


class DocoraWorker(Worker):
    """Short heartbeats whatever the command line says: rq's defaults would find a killed worker's job after 811 s."""

    max_connection_wait_time = 2.0  # seconds; nothing waits longer than this once Redis is back

    def __init__(self, queues: Any, name: str | None = None, **kwargs: Any) -> None:
        """Two containers may have the same pid, and even the same host name: the last part is the worker's own."""
        name = name or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        kwargs |= {"worker_ttl": WORKER_TTL_SECONDS, "maintenance_interval": 10, "job_monitoring_interval": 3}
        super().__init__(queues, name, **kwargs)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """rq ends a worker, and its job with it, whose Redis is away. The job needs only the database: it is waited
        for, and then Redis is."""
        try:
            super().execute_job(job, queue)
        except RedisError as error:
            logger.warning("worker_without_redis", extra={"cause": str(error)})
            while not self._stop_requested:
                with contextlib.suppress(RedisError):
                    self.connection.ping()
                    return
                time.sleep(0.5)

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Registers anew each time: rq does it at the start only, and a Redis that has lost everything would never know of
        its workers again."""
        super().heartbeat(timeout, pipeline)
        worker_registration.register(self, pipeline)
        if pipeline is None and not self.connection.hexists(self.key, "birth"):  # while it works, rq looks itself
            self.connection.hset(self.key, mapping={**self.serialize(), "state": self.get_state()})

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        for look_after in maintenance_callbacks:
            look_after()

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        with contextlib.suppress(RedisError):
            super().maintain_heartbeats(job, execution)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Not of a job that Redis knows no more: it was emptied, or this process was frozen and somebody else took over.
        The job's own work was done, or is done elsewhere."""
        if isinstance(exc_info[1], InvalidJobOperation | NoSuchJobError):
            logger.warning("job_forgotten", extra={"job_id": job.id, "cause": str(exc_info[1])})
        else:
            super().handle_exception(job, *exc_info)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        warm_up()
        self._parent_pid = os.getpid()
        super().fork_work_horse(job, queue)

    def setup_work_horse_signals(self) -> None:
        global _worker_name
        _worker_name = self.name
        die_with(self._parent_pid, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, request_stop)

    def handle_warm_shutdown_request(self) -> None:
        """SIGTERM reaches the work-horse too: it records what is acknowledged and frees its lease. rq alone would wait
        for the whole job. One that does not leave in time is killed; what it had in flight is in doubt, not lost."""
        super().handle_warm_shutdown_request()  # type: ignore[no-untyped-call]
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)
            threading.Thread(target=self._kill_late_horse, args=(self.horse_pid,), daemon=True).start()

    def _kill_late_horse(self, pid: int) -> None:
        time.sleep(HAND_OVER_SECONDS)
        if self.horse_pid == pid:
            self.kill_horse(signal.SIGKILL)
