"""Docora's RQ worker. It ends with its parent, hands over on SIGTERM, and survives Redis outages.

RQ starts a work-horse for each job. Docora's work-horse performs many jobs (`docora.server.work_horse`), and RQ has to see each
of them start and end. If a worker dies, other workers notice within seconds.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError
from rq import Worker, worker_registration
from rq.exceptions import DeserializationError, InvalidJobOperation, NoSuchJobError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.timeouts import TimerDeathPenalty
from rq.utils import as_text

from docora import disk
from docora.db.compiled import compile_all
from docora.process import die_with_parent_pid, request_stop
from docora.redis import connection, queues
from docora.redis.jobs import DocoraJob
from docora.redis.queues import WORKER_TTL_SECONDS
from docora.security import crypto
from docora.server.work_horse import Assignment, WorkHorse

logger = logging.getLogger(__name__)

_worker_name = ""
HAND_OVER_SECONDS = 8.0  # how long a work-horse may take to stop before it is killed
ALONE_PATIENCE_SECONDS = 30.0  # how long a job that runs alone waits before a work-horse ends to make room for it
_JOBS_READ = 20  # in each queue
_DEATH_CALLBACKS_SECONDS = 10
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

maintenance_callbacks: list[Callable[[], None]] = []
"""Called whenever a worker maintains its queues: about every ten seconds while idle, otherwise between jobs.

They must be quick and use only Redis.
"""

death_callbacks: list[Callable[[], object]] = []
"""Called in a separate process after a work-horse was killed, because the worker itself never opens the database."""


def identity() -> str:
    """Return the worker's name as Redis knows it, or `host:pid` outside of a worker."""
    return _worker_name or f"{socket.gethostname()}:{os.getpid()}"


def _run_death_callbacks() -> None:
    """Call the `death_callbacks` in a child process and wait until it ends."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            die_with_parent_pid(parent)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_DEATH_CALLBACKS_SECONDS)
            for callback in death_callbacks:
                callback()
        except Exception as error:  # the sweep cleans up later
            logger.warning("not_cleaned_up", extra={"cause": str(error).strip()})
        finally:
            os._exit(0)
    os.waitpid(child, 0)


_surviving_an_outage = connection.logging_outage("worker_without_redis")
"""Decorates methods. RQ waits for Redis while it waits for a job; an outage at any other time would end the worker."""


class DocoraWorker(Worker):
    """A worker with short heartbeats. With RQ's defaults, it takes 811 s to find the job of a killed worker."""

    max_connection_wait_time = 2.0  # seconds between attempts to reach Redis
    _stopping_pid = 0  # the work-horse that was asked to stop
    _horse_status: int | None = None  # the wait status of the last work-horse

    def __init__(self, queues: Any, name: str | None = None, **kwargs: Any) -> None:
        """Add a random part to the name, because two containers may have the same pid and host name."""
        name = name or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        kwargs |= {"job_class": DocoraJob, "serializer": "json"}
        kwargs |= {"worker_ttl": WORKER_TTL_SECONDS, "maintenance_interval": 10, "job_monitoring_interval": 3}
        super().__init__(queues, name, **kwargs)

    def _set_ip_address(self, connection: Any) -> None:
        """Don't ask Redis for it: nothing shows it, and redis-py can't read the answer if the socket's path has a space."""
        self.ip_address = "unknown"

    def subscribe(self) -> None:
        """Don't listen for RQ's commands, which nothing sends. It takes a connection, and rights to channels in Redis."""

    def serialize(self) -> dict[Any, Any]:
        """Also publish what `docora.redis.inspect` reads."""
        own = {"jobs_at_once": settings.SYNCS_PER_WORKER, "encryption_key": crypto.key_fingerprint()}
        own |= {"disk_problem": disk.problem()}
        return {**super().serialize(), **own}

    # --- Outages of Redis -----------------------------------------------------------------------------------------------

    check_for_suspension = _surviving_an_outage(Worker.check_for_suspension)
    set_state = _surviving_an_outage(Worker.set_state)
    # An exception in a signal handler would end the worker before its work-horse has handed over.
    set_shutdown_requested_date = _surviving_an_outage(Worker.set_shutdown_requested_date)
    # The registration then expires. An error would replace the one that ends the worker.
    register_death = _surviving_an_outage(Worker.register_death)

    def dequeue_job_and_maintain_ttl(self, *arguments: Any, **options: Any) -> Any:
        """Exit with a one-line message if Redis refuses commands, such as when its disk is full. RQ would log a traceback."""
        try:
            return super().dequeue_job_and_maintain_ttl(*arguments, **options)
        except ResponseError as error:
            raise SystemExit(" ".join(connection.problem(error))) from None

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Survive a Redis outage, in which RQ would end the worker and its job.

        The job needs only the database. Wait for the job to end, then for Redis.
        """
        try:
            super().execute_job(job, queue)
        except RedisError as error:
            logger.warning("worker_without_redis", extra={"cause": str(error)})
            self.executions.clear()  # a status that could not be stored must not become that of the next job
            while not self._stop_requested:
                with contextlib.suppress(RedisError):
                    self.connection.ping()
                    return
                time.sleep(0.5)

    @_surviving_an_outage
    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Register at every heartbeat, and publish what is wrong with this machine's disks.

        RQ registers only once, so a Redis that lost its data would never list the worker.
        """
        super().heartbeat(timeout, pipeline)
        worker_registration.register(self, pipeline)
        if pipeline is None:
            is_known = self.connection.hexists(self.key, "birth")
            own = {"disk_problem": disk.problem()} if is_known else {**self.serialize(), "state": self.get_state()}
            self.connection.hset(self.key, mapping=own)

    @_surviving_an_outage
    def run_maintenance_tasks(self) -> None:
        """Also call the callbacks. In a Redis outage, the tasks are tried again before the next job."""
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        for callback in maintenance_callbacks:
            callback()

    # --- Many jobs in one work-horse ------------------------------------------------------------------------------------

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Perform the job in the work-horse and, unless the job runs alone, also the jobs that wait behind it."""
        alone = queues.runs_alone(job)

        def take() -> Assignment | None:
            return None if alone else self._take_job(horse)

        horse = WorkHorse(1 if alone else settings.SYNCS_PER_WORKER, self._perform_one, take)
        horse.run((job, queue, execution))
        return True

    def _perform_one(self, job: Job, queue: Queue, execution: Execution) -> None:
        if super().perform_job(job, queue, execution):
            queues.enqueue_again(job)

    def _take_job(self, horse: WorkHorse) -> Assignment | None:
        """Take and return the next job from the queues, or None. Leave a job that runs alone to its own work-horse.

        If such a job has waited longer than `ALONE_PATIENCE_SECONDS`, end this work-horse to make room for it.
        """
        for queue in self.queues:
            for job_id in map(as_text, self.connection.lrange(queue.key, 0, _JOBS_READ - 1)):
                try:
                    job = self._fetch(job_id)
                except NoSuchJobError:
                    self.connection.lrem(queue.key, 1, job_id)
                    continue
                if queues.runs_alone(job):
                    if queues.waiting_seconds(job) > ALONE_PATIENCE_SECONDS:
                        horse.end_soon()
                        return None
                # If the tenant already has its share, leave the job for later or for another worker.
                elif horse.can_take(job) and self.connection.lrem(queue.key, 1, job_id):  # 0: another worker has it
                    return job, queue, self.prepare_execution(job)
        return None

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Send heartbeats for all jobs that the work-horse is performing. RQ would only send them for its first job."""
        if self._stop_requested:  # an alarm may have interrupted `request_stop`
            self._stop_horse()
        with contextlib.suppress(RedisError):
            # If Redis lost its data, there are no executions, but the worker must still be registered.
            self.heartbeat(WORKER_TTL_SECONDS)
            for current in self.get_current_executions(refresh=True):
                with contextlib.suppress(NoSuchJobError):
                    super().maintain_heartbeats(self._fetch(current.job_id), current)

    def _fetch(self, job_id: str) -> Job:
        """Return a job. `Execution.job` would unpickle what Redis holds. Raises `NoSuchJobError`."""
        return self.job_class.fetch(job_id, connection=self.connection, serializer=self.serializer)

    def wait_for_horse(self) -> Any:
        pid, self._horse_status, usage = super().wait_for_horse()
        return pid, self._horse_status, usage

    def monitor_work_horse(self, job: Job, queue: Queue, execution: Execution) -> None:
        """Wait for the work-horse to end. RQ only cleans up after its first job, so also clean up after a later one."""
        super().monitor_work_horse(job, queue, execution)
        if self._horse_status:
            _run_death_callbacks()
        for left in self.get_current_executions(refresh=True):
            with contextlib.suppress(NoSuchJobError):
                reason = "The work-horse ended unexpectedly."
                self.handle_job_failure(self._fetch(left.job_id), queue, exc_string=reason, execution=left)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """Do nothing for a job whose execution has ended.

        When a work-horse is killed, RQ marks its first job as failed. That job may have ended long ago, and be waiting or
        running again.
        """
        if self.is_horse or execution is None or self.connection.exists(execution.key):
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Only log errors about jobs that Redis no longer has, and about jobs that are not Docora's.

        In the first case, Redis was emptied, or another worker took over while this process was frozen. Another job does the
        work. In the second case, the job may be from an earlier version. The sweep then enqueues its watch again.
        """
        if isinstance(exc_info[1], InvalidJobOperation | NoSuchJobError):
            logger.warning("job_forgotten", extra={"job_id": job.id, "cause": str(exc_info[1])})
        elif isinstance(exc_info[1], DeserializationError):
            logger.warning("job_refused", extra={"job_id": job.id, "cause": str(exc_info[1])})
        else:
            super().handle_exception(job, *exc_info)

    # --- Processes and signals ------------------------------------------------------------------------------------------

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork with SIGTERM blocked until both processes can handle it. Otherwise neither of them would."""
        # Do this once here. Otherwise every work-horse would derive the keys, import the jobs and compile their queries.
        crypto.derive_keys()
        for path in settings.JOBS:
            import_string(path)
        compile_all()
        self._parent_pid = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            super().fork_work_horse(job, queue)
            with contextlib.suppress(OSError):  # the work-horse has done it, or has ended
                os.setpgid(self.horse_pid, self.horse_pid)  # before that, `kill_horse` would kill this worker
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def setup_work_horse_signals(self) -> None:
        global _worker_name
        _worker_name = self.name
        die_with_parent_pid(self._parent_pid)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, request_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        self.death_penalty_class = TimerDeathPenalty  # jobs run in threads, which get no signals

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Handle SIGTERM. Set the flag first, because an alarm of `monitor_work_horse` may interrupt this."""
        self._stop_requested = True
        self._stop_horse()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def _stop_horse(self) -> None:
        """Pass SIGTERM on to the work-horse, which records acknowledged files and frees its leases.

        RQ would wait for the whole job. If the work-horse takes too long, kill it. Its requests in flight are then in
        doubt, not lost.
        """
        if self.horse_pid and self.horse_pid != self._stopping_pid:
            self.kill_horse(signal.SIGTERM)
            threading.Thread(target=self._kill_late_horse, args=(self.horse_pid,), daemon=True).start()
            self._stopping_pid = self.horse_pid

    def _kill_late_horse(self, pid: int) -> None:
        time.sleep(HAND_OVER_SECONDS)
        if self.horse_pid == pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # `kill_horse` would kill this worker if the work-horse ended just now
