"""Pause, resume and cancel with real workers. They react within seconds and resend nothing that was acknowledged."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Outcome, Status
from deliveries_app.reports import queue as queue_report
from deliveries_app.scheduling import request_sync
from deliveries_app.services import cancel_sync, pause_syncing, resume_syncing
from docora.redis import inspect, queues
from tests.faults.conftest import MAX_IN_FLIGHT, RECORD_BATCH
from tests.faults.test_kill import FILES, duplicates, wait_until_synced, watch_slow_client
from tests.support.histories import assert_promise_kept
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.valkey import ValkeyServer
from tests.support.world import World

ACTOR = Actor.command()
OTHER_FILES = {f"{number}.txt": b"%d" % number for number in range(FILES)}


def wait_until_released(watch: AppRepository) -> None:
    """Wait until no worker holds the watch."""
    wait_for(lambda: not AppRepository.objects.filter(pk=watch.pk).leased().exists(), 20, 0.05)
    watch.refresh_from_db()


def test_pause_and_resume_with_workers(world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world)
    daemons.sweep()
    workers = [daemons.worker(), daemons.worker("high", "low", "default")]
    wait_for(lambda: len(world.requests()) > 100, 30)
    pause_syncing(ACTOR)
    wait_until_released(watch)
    sent = len(world.requests())
    assert sent < FILES
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert watch.deliveries.filter(acknowledged=True).count() == sent
    _other_repo, other = world.watch(name="acme/other")
    wait_for(lambda: queues.job_ids("high") == [], 20, 0.05)  # a worker has taken its job and done nothing
    resume_syncing(ACTOR)
    wait_until_synced(watch)
    wait_until_synced(other)
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) == 0
    assert [run.outcome for run in world.runs(watch)] == [Outcome.SUCCEEDED]
    assert all(worker.running for worker in workers)
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]


def test_worker_takes_the_next_job_after_a_cancel(world: World, daemons: Daemons) -> None:
    repo, watch = watch_slow_client(world)
    daemons.sweep()
    worker = daemons.worker()
    wait_for(lambda: len(world.requests()) > 100, 30)
    _other_repo, other = world.watch(name="acme/other")
    assert cancel_sync(ACTOR, watch)
    wait_until_released(watch)
    sent = len(world.requests_about(watch))
    assert sent < FILES
    wait_until_synced(other)
    assert (watch.status, watch.retry_count, world.runs(watch)[0].outcome) == (Status.PENDING, 0, Outcome.CANCELLED)
    assert len(world.requests_about(watch)) == sent
    request_sync(AppRepository.objects.filter(pk=watch.pk))  # as its rescan does
    wait_until_synced(watch)
    assert_promise_kept(world, repo, watch)
    assert duplicates(world) <= RECORD_BATCH + MAX_IN_FLIGHT
    assert worker.running
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]


@pytest.mark.early(1)
def test_workers_register_again_after_a_flush(world: World, daemons: Daemons, valkey_server: ValkeyServer) -> None:
    worker = daemons.worker()
    wait_for(lambda: [known.pid for known in inspect.read_workers()] == [worker.pid], 30, 0.1)
    with valkey_server.client() as client:
        client.flushall()
    wait_for(lambda: [known.pid for known in inspect.read_workers()] == [worker.pid], 30, 0.1)
    (known,) = inspect.read_workers()
    assert (known.state, known.is_gone, known.queues) == ("idle", False, "high, default, low")


def test_lease_names_the_worker_not_its_child(world: World, daemons: Daemons) -> None:
    _repo, watch = watch_slow_client(world)
    worker = daemons.worker()
    wait_for(lambda: len(world.requests()) > 20, 30)
    watch.refresh_from_db()
    (known,) = inspect.read_workers()
    assert (watch.lease_owner, known.pid) == (known.name, worker.pid)
    assert known.job is not None
    assert (known.state, known.job.argument) == ("busy", str(watch.pk))


def test_containers_with_equal_host_name_and_pid(world: World, daemons: Daemons, tmp_path: Path) -> None:
    def set_host_name() -> None:
        os.unshare(os.CLONE_NEWUTS)
        socket.sethostname("docora")

    (tmp_path / "containers").mkdir()
    environment = daemons.environment | {"SYNCS_PER_WORKER": "1"}
    containers = Daemons(tmp_path / "containers", environment, enter=set_host_name)
    app = world.add_app("Search")
    watches = [watch_slow_client(world)[1], world.watch(OTHER_FILES, name="acme/other", app=app)[1]]
    try:
        for _ in watches:
            containers.start(
                "rqworker", "high", "default", "low", through=["unshare", "--pid", "--fork", "--kill-child"]
            )
    except subprocess.SubprocessError as error:
        pytest.skip(f"this process may not create containers: {error}")
    try:
        wait_for(lambda: AppRepository.objects.leased().count() == 2, 30)
        owners = set(AppRepository.objects.leased().values_list("lease_owner", flat=True))
        workers = inspect.read_workers()
        assert {(known.host, known.pid) for known in workers} == {("docora", 1)}
        assert {known.name for known in workers} == owners
        assert len(owners) == 2
        assert all(owner.startswith("docora:1:") for owner in owners)
        lines = queue_report.read_queue().workers
        assert [len(line.watches) for line in lines] == [1, 1]
    finally:
        containers.close()
