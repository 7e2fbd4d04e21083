"""What Docora's RQ worker does beyond rq's: a work-horse performs the jobs that wait behind its first one, several at once."""

import json
import logging
import os
import pickle
import signal
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import django_rq
import pytest
from django.db import connections
from django.utils.module_loading import import_string
from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.registry import StartedJobRegistry

from deliveries_app import scheduling
from deliveries_app.monitoring import alerts
from deliveries_app.sweep.cleanup import CLEAN_UP_JOB
from deliveries_app.sweep.retention import PRUNE_JOB
from docora import disk
from docora.process import stopping
from docora.redis import inspect, queues
from docora.redis.connection import connection
from docora.redis.jobs import DocoraJob
from docora.server import work_horse
from docora.server import worker as worker_module
from docora.server.worker import DocoraWorker
from docora.settings import JOBS
from tests.support.processes import forked, reap
from tests.support.receiver import wait_for
from tests.support.valkey import ValkeyServer

HERE = f"{__name__}."


@pytest.fixture(autouse=True)
def _allow_these_jobs(settings) -> None:
    settings.JOBS = [HERE + "note", HERE + "note_another"]


def note(path: str) -> None:
    """The job: append the work-horse's pid to the file. What else it does depends on the file's name."""
    file = Path(path)
    with file.open("a") as lines:
        lines.write(f"{os.getpid()}\n")
    if file.name == "fails":
        raise ValueError("a job that fails")
    if file.name == "is_killed" and len(pids(file)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if file.name.startswith("waits"):
        wait_for(file.with_suffix(".go_on").exists, 20)
    if file.name == "lasts":
        wait_for(stopping, 20)
    if file.name == "takes_long":
        time.sleep(7)
    if file.name == "computes":
        ends_at = time.process_time() + 1.5
        while time.process_time() < ends_at:
            pass
    with file.open("a") as lines:
        lines.write("ended\n")


def compute_for_ever() -> None:
    while True:
        pass


def note_another(path: str) -> None:
    note(path)


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split() if line.isdecimal()] if file.exists() else []


def has_ended(file: Path) -> bool:
    return file.exists() and "ended" in file.read_text()


def put(file: Path, queue: str = "default", function: str = "note", **options: Any) -> None:
    assert queues.enqueue(queue, HERE + function, str(file), file.name, **options)


def work(*names: str, log: Path | None = None, kind: type[DocoraWorker] = DocoraWorker) -> int:
    """Start a worker on these queues in a process of its own. It ends once they are empty. Return its pid."""

    def run() -> None:
        if log:
            logging.getLogger().addHandler(logging.FileHandler(log))
        redis = connection()
        kind([django_rq.get_queue(name, connection=redis) for name in names], connection=redis).work(burst=True)

    return forked(run)


def work_on(file: Path) -> int:
    """Start a worker, wait until it performs this file's job, and return the worker's pid."""
    put(file)
    worker = work("default")
    wait_for(lambda: pids(file), 20)
    return worker


def work_until_empty(*names: str) -> None:
    os.waitpid(work(*names), 0)


def test_work_horse_performs_the_jobs_behind_its_first(tmp_path: Path) -> None:
    files = [tmp_path / f"job-{number}" for number in range(5)]
    for file in files[:4]:
        put(file)
    put(files[4], "high")
    work_until_empty("high", "default")
    assert len({pid for file in files for pid in pids(file)}) == 1
    assert all(len(pids(file)) == 1 for file in files)
    assert not connection().keys("rq:job:*")


def test_queues_keep_their_order(tmp_path: Path) -> None:
    low, lower, high = (tmp_path / name for name in ("low", "lower", "high"))
    put(low, "low")
    put(lower, "low")
    put(high, "high", function="note_another")
    work_until_empty("high", "low")
    assert high.stat().st_mtime_ns < low.stat().st_mtime_ns < lower.stat().st_mtime_ns


def test_job_that_waits_does_not_keep_others_from_the_worker(tmp_path: Path) -> None:
    first, waiting, other, last = (tmp_path / name for name in ("first", "waits", "other", "last"))
    put(first)
    worker = work_on(waiting)
    put(other, function="note_another")
    put(last)
    wait_for(lambda: has_ended(other) and has_ended(last), 5)
    assert pids(waiting) == pids(other) == pids(last)
    assert not has_ended(waiting)
    waiting.with_suffix(".go_on").touch()
    os.waitpid(worker, 0)
    assert has_ended(waiting)


@pytest.mark.parametrize("alone", [False, True])
def test_job_that_is_enqueued_while_it_runs_is_performed_again(tmp_path: Path, alone: bool) -> None:
    waiting = tmp_path / "waits"
    options = {"alone": alone, "tenant": "a"}
    put(waiting, **options)
    worker = work("default")
    wait_for(lambda: pids(waiting), 20)
    for _ in range(3):
        assert not queues.enqueue("high", f"{HERE}note", str(waiting), waiting.name, **options)
    waiting.with_suffix(".go_on").touch()
    os.waitpid(worker, 0)
    [job] = django_rq.get_queue("high").get_jobs()  # this worker does not look there
    assert (job.id, job.meta) == (waiting.name, options)
    work_until_empty("high")
    assert len(pids(waiting)) == 2
    assert not connection().keys("*waits")


def test_syncs_per_worker_limits_the_concurrent_jobs(tmp_path: Path, settings) -> None:
    settings.SYNCS_PER_WORKER = 3
    files = [tmp_path / f"waits-{number}" for number in range(5)]
    for number, file in enumerate(files):
        put(file, tenant=str(number))
    worker = work("default")
    wait_for(lambda: sum(bool(pids(file)) for file in files) == 3, 20)
    time.sleep(0.5)
    assert sum(bool(pids(file)) for file in files) == 3
    for file in files:
        file.with_suffix(".go_on").touch()
    os.waitpid(worker, 0)
    assert len({pid for file in files for pid in pids(file)}) == 1
    assert all(map(has_ended, files))


def test_tenants_share_the_threads(tmp_path: Path, settings) -> None:
    """Otherwise, one tenant's jobs that wait for its server could hold all of them."""
    settings.SYNCS_PER_WORKER = 6
    files = [tmp_path / f"waits-{tenant}-{number}" for number in range(6) for tenant in "ab"]

    def at_work(tenant: str) -> int:
        return sum(bool(pids(file)) and not has_ended(file) for file in files if f"-{tenant}-" in file.name)

    for file in files[::2]:
        put(file, tenant="a")
    worker = work("default")
    wait_for(lambda: at_work("a") == 5, 20)  # the last thread is kept
    for file in files[1::2]:
        put(file, tenant="b")
    wait_for(lambda: at_work("b"), 20)
    for file in files[:4:2]:
        file.with_suffix(".go_on").touch()
    wait_for(lambda: all(map(has_ended, files[:4:2])) and at_work("b") == 2 and at_work("a") == 3, 20)
    time.sleep(0.6)
    assert (at_work("a"), at_work("b")) == (3, 2)  # a has its share, and the last thread is kept again
    for file in files:
        file.with_suffix(".go_on").touch()
    os.waitpid(worker, 0)
    assert all(map(has_ended, files))


def test_busy_work_horse_performs_one_job_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if other processes leave it little CPU. With more threads, its jobs would only take CPU from each other."""
    # Other tests may leave it nothing at all for a moment, and very little for longer.
    monkeypatch.setattr(work_horse, "_CHECK_SECONDS", 2.0)
    monkeypatch.setattr(work_horse, "_MOST_WAITED", 99)
    cpus = os.sched_getaffinity(0)
    busy, other = tmp_path / "computes", tmp_path / "other"
    put(busy)
    put(other)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        others = [forked(compute_for_ever) for _ in range(2)]
        worker = work("default")
    finally:
        os.sched_setaffinity(0, cpus)
    try:
        wait_for(lambda: pids(other), 60)
        assert has_ended(busy)
        os.waitpid(worker, 0)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)
            reap(pid)


def test_job_that_runs_alone_has_a_work_horse_of_its_own(tmp_path: Path) -> None:
    first, alone, last = (tmp_path / name for name in ("waits", "alone", "last"))
    worker = work_on(first)
    put(alone, alone=True)
    put(last)
    wait_for(lambda: has_ended(last), 5)
    assert not pids(alone)
    first.with_suffix(".go_on").touch()
    os.waitpid(worker, 0)
    assert pids(first) == pids(last) != pids(alone)
    assert has_ended(alone)


def test_job_that_runs_alone_does_not_wait_for_a_busy_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "ALONE_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(work_horse, "HAND_OVER_AFTER", 0.5)
    lasting, alone = tmp_path / "lasts", tmp_path / "alone"
    worker = work_on(lasting)
    put(alone, alone=True)
    wait_for(lambda: has_ended(alone), 8)
    assert has_ended(lasting)
    os.waitpid(worker, 0)


def test_failed_job_ends_only_itself(tmp_path: Path) -> None:
    first, failing, last = (tmp_path / name for name in ("first", "fails", "last"))
    for file in (first, failing, last):
        put(file)
    work_until_empty("default")
    assert pids(first) == pids(failing) == pids(last)


@pytest.mark.parametrize("limit", ["jobs", "seconds"])
def test_work_horse_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(work_horse, *{"jobs": ("JOBS", 2), "seconds": ("SECONDS", 0.0)}[limit])
    files = [tmp_path / f"job-{number}" for number in range(4)]
    for file in files:
        put(file)
    work_until_empty("default")
    assert len({pid for file in files for pid in pids(file)}) == {"jobs": 2, "seconds": 4}[limit]


def test_last_jobs_of_a_work_horse_are_asked_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the worker would take nothing as long as one of them waits."""
    monkeypatch.setattr(work_horse, "SECONDS", 0.5)
    monkeypatch.setattr(work_horse, "HAND_OVER_AFTER", 0.5)
    lasting, last = tmp_path / "lasts", tmp_path / "last"
    worker = work_on(lasting)
    time.sleep(0.8)
    put(last)
    wait_for(lambda: has_ended(last), 5)
    assert has_ended(lasting)
    assert pids(lasting) != pids(last)
    os.waitpid(worker, 0)


@pytest.mark.parametrize("alone", [False, True])
def test_job_that_hangs_does_not_block_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    monkeypatch.setattr(work_horse, "SECONDS", 0.5)
    monkeypatch.setattr(work_horse, "HAND_OVER_AFTER", 0.2)
    monkeypatch.setattr(work_horse, "HANGS_AFTER", 0.5)
    hanging, last = tmp_path / "waits", tmp_path / "last"
    put(hanging, alone=alone)
    worker = work("default")
    wait_for(lambda: pids(hanging), 20)
    time.sleep(0.8)
    put(last)
    wait_for(lambda: has_ended(last), 10)
    assert not has_ended(hanging)
    assert reap(worker) == 0


class InterruptedWorker(DocoraWorker):
    """RQ's alarm for monitoring the work-horse goes off just when the worker forwards SIGTERM."""

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        if signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
            signal.raise_signal(signal.SIGALRM)
        super().kill_horse(sig)


class SlowlyForkingWorker(DocoraWorker):
    """Both sides of the fork take their time. `forks` exists meanwhile."""

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        Path(job.args[0]).with_name("forks").touch()
        fork = os.fork

        def fork_slowly() -> int:
            pid = fork()
            time.sleep(0.7)
            return pid

        os.fork = fork_slowly
        super().fork_work_horse(job, queue)


@pytest.mark.parametrize(("kind", "signal_when"), [(InterruptedWorker, "lasts"), (SlowlyForkingWorker, "forks")])
def test_sigterm_always_ends_the_worker(tmp_path: Path, kind: type[DocoraWorker], signal_when: str) -> None:
    job = tmp_path / "lasts"
    put(job)
    worker = work("default", kind=kind)
    wait_for((tmp_path / signal_when).exists)
    os.kill(worker, signal.SIGTERM)
    assert reap(worker, 15) == 0
    assert has_ended(job)


def test_work_horse_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "HAND_OVER_SECONDS", 0.3)
    hanging = tmp_path / "waits"
    worker = work_on(hanging)
    os.kill(worker, signal.SIGTERM)
    assert reap(worker, 10) == 0
    assert not has_ended(hanging)


def test_death_callback_that_hangs_does_not_block_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "death_callbacks", [lambda: time.sleep(30)])
    monkeypatch.setattr(worker_module, "_DEATH_CALLBACKS_SECONDS", 1)
    assert reap(forked(worker_module._run_death_callbacks), 10) == 0


class WithoutRedis(DocoraWorker):
    """A worker whose Redis does not respond while it looks after its queues for the first time."""

    tries = 0

    def clean_registries(self) -> None:
        self.tries += 1
        if self.tries == 1:
            raise RedisTimeoutError("Timeout reading from socket")
        super().clean_registries()  # type: ignore[no-untyped-call]


def test_redis_outage_during_maintenance_does_not_end_the_worker(tmp_path: Path) -> None:
    file = tmp_path / "note"
    put(file)
    assert reap(work("default", kind=WithoutRedis)) == 0
    assert len(pids(file)) == 1


def test_redis_outage_between_jobs_does_not_end_the_worker(
    valkey_server: ValkeyServer, redis_client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    # Not on the connection of this process, because RQ changes the timeouts of the one that it is given.
    worker = DocoraWorker([django_rq.get_queue("default", connection=redis_client)], connection=redis_client)
    worker.register_birth()
    valkey_server.stop()
    worker.check_for_suspension(burst=False)
    worker.set_state("idle")
    worker.heartbeat()
    assert [record.message for record in caplog.records] == ["worker_without_redis"] * 3
    valkey_server.start()
    worker.heartbeat()
    assert redis_client.hget(worker.key, "state") == b"idle"


def test_later_job_of_a_killed_work_horse_leaves_nothing_behind(tmp_path: Path, redis_client: Redis) -> None:
    first, killed, last = (tmp_path / name for name in ("first", "is_killed", "last"))
    for file in (first, killed, last):
        put(file)
    work_until_empty("default")
    assert pids(first) == pids(killed) != pids(last)
    assert StartedJobRegistry("default", connection=redis_client).get_job_ids() == []
    wait_for(lambda: not redis_client.exists("rq:job:is_killed"), 8)
    put(killed)
    work_until_empty("default")
    assert len(pids(killed)) == 2


def test_killed_work_horse_leaves_its_first_job_alone_if_that_has_ended(tmp_path: Path, redis_client: Redis) -> None:
    """By then, the job may wait again, or another worker may perform it."""
    first, waiting = tmp_path / "first", tmp_path / "waits"
    put(first)
    put(waiting)
    worker = work("default")
    wait_for(lambda: pids(waiting), 20)
    put(first, "low")
    os.kill(pids(waiting)[0], signal.SIGKILL)
    os.waitpid(worker, 0)
    assert redis_client.ttl("rq:job:first") == -1
    assert redis_client.hget("rq:job:first", "status") == b"queued"
    work_until_empty("low")
    assert len(pids(first)) == 2


@pytest.mark.early(5)
def test_long_later_job_stays_alive(tmp_path: Path, redis_client: Redis) -> None:
    first, long = (tmp_path / name for name in ("first", "takes_long"))
    put(first)
    put(long)
    pid = work("default")
    wait_for(lambda: pids(long), 20)
    (key,) = redis_client.keys("rq:execution:takes_long:*")

    def heartbeat() -> datetime:
        return datetime.fromtimestamp(float(redis_client.hget(key, "last_heartbeat")))

    began = heartbeat()
    wait_for(lambda: heartbeat() > began, 7)
    os.waitpid(pid, 0)
    assert not redis_client.keys("rq:execution:*")


def malicious(redis: Redis, kind: str, file: Path) -> None:
    """Queue a job as an attacker with access to Redis would. It creates the file."""
    touch = [HERE + "note", None, [str(file)], {}]
    data = {
        "pickle": pickle.dumps(("os.system", None, (f"touch {file}",), {})),
        "another function": json.dumps(["os.system", None, [f"touch {file}"], {}]).encode(),
        "a method": json.dumps([HERE + "note.__call__", None, [str(file)], {}]).encode(),
        "keyword arguments": json.dumps([*touch[:3], {"path": str(file)}]).encode(),
        "no JSON": b"\x80",
        "a callback": json.dumps([HERE + "note", None, [str(file.with_name("harmless"))], {}]).encode(),
    }[kind]
    fields = {"data": data, "origin": "default", "status": "queued", "created_at": "2026-01-01T00:00:00.000000Z"}
    if kind == "a callback":
        fields |= {f"{name}_callback_name": f"{HERE}callback" for name in ("success", "failure", "stopped")}
    redis.hset("rq:job:malicious", mapping=fields)
    redis.rpush("rq:queue:default", "malicious")


def callback(job: Job, *_: object) -> None:
    job_file = Path(job.args[0])
    job_file.with_name("malicious").touch()


@pytest.mark.parametrize(
    "kind", ["pickle", "another function", "a method", "keyword arguments", "no JSON", "a callback"]
)
@pytest.mark.parametrize("first", [True, False])
def test_worker_calls_only_docoras_own_jobs(tmp_path: Path, redis_client: Redis, kind: str, first: bool) -> None:
    before, after, file = (tmp_path / name for name in ("before", "after", "malicious"))
    if not first:
        put(before)
    malicious(redis_client, kind, file)
    put(after)
    os.waitpid(work("default", log=tmp_path / "log"), 0)
    assert has_ended(after)
    assert not file.exists()
    output = (tmp_path / "log").read_text()
    assert "Traceback" not in output
    assert ("job_refused" in output) == (kind != "a callback")


def test_worker_registers_again_although_redis_has_lost_its_job(tmp_path: Path, redis_client: Redis) -> None:
    put(tmp_path / "note")
    worker = DocoraWorker(["default"], name="test", connection=redis_client)
    worker.register_birth()
    job = DocoraJob.fetch("note", connection=redis_client, serializer="json")
    execution = worker.prepare_execution(job)
    for lose in (lambda: redis_client.delete(job.key), redis_client.flushall):
        lose()
        worker.maintain_heartbeats(job, execution)
        assert redis_client.hget(worker.key, "birth")
        assert redis_client.smembers("rq:workers") == {worker.key.encode()}


def test_worker_outlives_a_job_that_is_replaced_during_a_heartbeat(
    tmp_path: Path, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat wrote half of an execution that had just been deleted, and the next one failed to read it."""
    put(tmp_path / "note")
    worker = DocoraWorker(["default"], name="test", connection=redis_client)
    worker.register_birth()
    job = worker._fetch("note")
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job)
    redis_client.lpop("rq:queue:default")
    redis_client.hset(job.key, "started_at", "2026-01-01T00:00:00.000000Z")
    fetch = worker._fetch

    def replace_and_fetch(job_id: str) -> Job:
        put(tmp_path / "note", owned=False)
        return fetch(job_id)

    monkeypatch.setattr(worker, "_fetch", replace_and_fetch)
    for _ in range(2):
        worker.maintain_heartbeats(job, execution)
    assert redis_client.lrange("rq:queue:default", 0, -1) == [b"note"]
    assert worker.get_current_executions(refresh=True) == []


class Pickled:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def test_worker_does_not_unpickle_what_it_performs(tmp_path: Path, redis_client: Redis) -> None:
    """The worker reads the jobs of its work-horse at each heartbeat. Their metadata could be a pickle."""
    put(tmp_path / "harmless")
    worker, file = DocoraWorker(["default"], name="test", connection=redis_client), tmp_path / "malicious"
    worker.register_birth()
    job = DocoraJob.fetch("harmless", connection=redis_client, serializer="json")
    execution = worker.prepare_execution(job)
    redis_client.hset(job.key, "meta", pickle.dumps(Pickled(file)))
    worker.maintain_heartbeats(job, execution)
    assert redis_client.hget(job.key, "last_heartbeat") is not None
    assert not file.exists()


def test_running_jobs_finish_when_taking_another_fails(tmp_path: Path) -> None:
    put(tmp_path / "job")
    queue = django_rq.get_queue("default")
    ended: list[float] = []

    def perform(*_: object) -> None:
        time.sleep(1.0)  # several looks for further jobs
        ended.append(time.monotonic())

    def take() -> None:
        raise RedisTimeoutError

    horse = work_horse.WorkHorse(2, perform, take)
    horse.run((queue.fetch_job("job"), queue, None))
    assert ended


def test_place_is_free_again_after_a_job_without_redis(tmp_path: Path, redis_client: Redis) -> None:
    put(tmp_path / "note")
    queue = django_rq.get_queue("default")
    job = DocoraJob.fetch("note", connection=redis_client, serializer=queue.serializer)

    def perform(*_: object) -> None:
        raise RedisTimeoutError

    horse = work_horse.WorkHorse(2, perform, lambda: None)
    horse.run((job, queue, Execution("1", job.id, redis_client)))
    assert horse.can_take(job)


@pytest.mark.django_db(transaction=True)
def test_thread_replaces_a_broken_database_connection_and_leaves_none_open(tmp_path: Path) -> None:
    put(tmp_path / "job")
    queue = django_rq.get_queue("default")
    assignment = (queue.fetch_job("job"), queue, None)
    following, used = [assignment], []

    def perform(*_: object) -> None:
        database = connections["default"]
        database.ensure_connection()
        database.errors_occurred = not used
        used.append(database.connection)

    work_horse.WorkHorse(1, perform, lambda: following.pop() if following else None).run(assignment)
    first, second = used
    assert first is not second
    assert second.closed


def test_job_ends_although_its_execution_has_expired(tmp_path: Path, redis_client: Redis) -> None:
    """Its worker was frozen for longer than Redis keeps an execution that sends no heartbeats."""
    put(tmp_path / "note")
    job = DocoraJob.fetch("note", connection=redis_client, serializer=django_rq.get_queue("default").serializer)
    redis_client.zadd(job.execution_registry.key, {"expired": time.time() + 60})
    job.delete()
    assert not redis_client.exists(job.key)


@pytest.mark.parametrize("is_lost", [False, True])
def test_worker_publishes_its_machine_s_disk_problem(
    redis_client: Redis, settings, tmp_path: Path, is_lost: bool
) -> None:
    settings.REPOS_DIR = tmp_path / "repos"
    worker = DocoraWorker(["default"], connection=redis_client)
    worker.register_birth()
    assert inspect.read_workers()[0].disk_problem == ""
    settings.REPOS_DIR = tmp_path / "file"
    settings.REPOS_DIR.write_text("")
    if is_lost:
        redis_client.flushall()
    worker.heartbeat()
    found = inspect.read_workers()[0]
    assert found.host == socket.gethostname()
    assert found.disk_problem == disk.problem() != ""
    settings.REPOS_DIR = tmp_path / "repos"
    worker.heartbeat()
    assert inspect.read_workers()[0].disk_problem == ""


def test_worker_reports_a_disk_that_fills_up_during_a_job(redis_client: Redis, settings, tmp_path: Path) -> None:
    settings.REPOS_DIR = tmp_path / "repos"
    worker = work_on(tmp_path / "waits")
    settings.REPOS_DIR.rmdir()
    settings.REPOS_DIR.write_text("")
    wait_for(lambda: inspect.read_workers()[0].disk_problem, 20, 0.1)
    (tmp_path / "waits.go_on").touch()
    os.waitpid(worker, 0)


def test_path_of_the_socket_may_have_a_space() -> None:
    server = ValkeyServer()
    server.socket = server.folder / "My files.sock"
    with server:
        assert DocoraWorker(["default"], connection=server.client()).name


def test_every_job_that_is_enqueued_is_allowed() -> None:
    jobs = {scheduling.SYNC_JOB, scheduling.SYNC_ALONE_JOB, alerts.JOB, CLEAN_UP_JOB, PRUNE_JOB}
    assert jobs == set(JOBS)
    for name in jobs:
        assert callable(import_string(name))
