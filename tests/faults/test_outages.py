"""Redis or PostgreSQL is down for a while during syncs: pages still work, and nothing is lost."""

import contextlib
import time
from collections.abc import Iterator

import psycopg
import pytest
from django.db import OperationalError, connection, connections
from django.db.models.functions import Now
from django.test import Client

from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.models.watches import MAX_SHARED_CRASHES
from tests.faults.conftest import MAX_IN_FLIGHT, RECORD_BATCH
from tests.faults.test_kill import duplicates, wait_until_synced, watch_slow_client
from tests.support.histories import assert_promise_kept
from tests.support.postgres import PostgresServer
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.staff import VIEWS, staff
from tests.support.valkey import ValkeyServer
from tests.support.world import World

LIST = "/admin/deliveries_app/apprepository/"
MAX_WAIT = 8  # seconds that a person may wait for a page while Redis is gone


def numbered(count: int) -> dict[str, bytes]:
    return {f"{number:03}.txt": b"%d" % number for number in range(count)}


def press_resync(client: Client, watches: list[AppRepository]) -> BulkOperation:
    """Select these watches in the list, confirm, and open the page that follows."""
    chosen = {"action": "force_resync", "_selected_action": [watch.pk for watch in watches], "index": "0"}
    confirmation = client.post(LIST, chosen)
    assert confirmation.status_code == 302
    assert client.get(confirmation.url).status_code == 200
    shown = client.post(confirmation.url, {"post": "yes"}, follow=True)
    assert shown.status_code == 200
    return BulkOperation.objects.latest("pk")


def progress_of(client: Client, operation: BulkOperation) -> dict[str, int]:
    answer = client.get(f"/admin/api/retry/progress/{operation.operation_id}")
    assert answer.status_code == 200, answer.content
    found: dict[str, int] = answer.json()["data"]
    return found


@pytest.mark.early(1)
def test_redis_outage_during_a_resync(world: World, daemons: Daemons, valkey_server: ValkeyServer) -> None:
    admin = staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")
    repositories = [watch_slow_client(world, 60, pause=0.02)]
    repositories += [world.watch(numbered(60), name=f"acme/gadgets-{number}") for number in range(3)]
    watches = [watch for _, watch in repositories]
    daemons.sweep()
    workers = [daemons.worker(), daemons.worker("high", "low", "default")]
    for watch in watches:
        wait_until_synced(watch)
    first = press_resync(admin, watches)
    wait_for(lambda: len(world.requests()) > 240 + 30, 30)
    valkey_server.stop()
    gone_at = time.monotonic()
    sent = len(world.requests())
    second = press_resync(admin, watches[1:])
    assert time.monotonic() - gone_at < MAX_WAIT, "the button waits for Redis"
    operation_page = f"/admin/deliveries_app/bulkoperation/{second.pk}/change/"
    for page in (LIST, operation_page, f"/admin/progress/{second.operation_id}/"):
        assert admin.get(page).status_code == 200, page
    assert progress_of(admin, second)["total"] == 3
    wait_for(lambda: len(world.requests()) > sent, 15)  # a running sync continues
    time.sleep(max(0.0, 15 - (time.monotonic() - gone_at)))  # the outage itself
    assert "Redis isn't responding" in admin.get("/admin/").text
    valkey_server.start()
    wait_for(lambda: not BulkOperation.objects.filter(ended_at=None).exists(), 90, 0.1)
    for repo, watch in repositories:
        wait_until_synced(watch)
        assert_promise_kept(world, repo, watch)
    assert not SyncRun.objects.filter(outcome="").exists()
    done = progress_of(admin, second)
    assert (done["completed"], done["succeeded"], done["files_done"], done["files_total"]) == (3, 3, 180, 180)
    done = progress_of(admin, first)
    assert done["completed"] == done["total"] == 4  # the second operation has superseded some runs
    assert done["files_done"] <= done["files_total"] == 240
    assert all(worker.running for worker in workers)


def test_lost_database_connections_are_not_reported_as_dead_workers(
    world: World, daemons: Daemons, postgres_server: PostgresServer
) -> None:
    """As behind a proxy that ends sessions. Each counted as a worker that the repository may have killed."""
    repo, watch = watch_slow_client(world, 150, pause=0.02)
    daemons.sweep()
    daemons.worker()
    for lost in (1, 2):
        seen = len(world.requests())
        wait_for(lambda seen=seen: len(world.requests()) > seen + 20, 30)
        with psycopg.connect(postgres_server.url_of(connection.settings_dict["NAME"]), autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN "
                "(pg_backend_pid(), %s)", [connection.connection.info.backend_pid],
            )  # fmt: skip
        wait_for(lambda lost=lost: daemons.logs().count("job_without_database") >= lost, 20)
    wait_until_synced(watch)
    assert_promise_kept(world, repo, watch)
    assert [run.outcome for run in world.runs(watch)] == ["succeeded"]
    assert watch.last_error == ""
    assert "process_died" not in daemons.logs()


@contextlib.contextmanager
def full_disk(*changes: str) -> Iterator[None]:
    """Refuse these changes, written as in a trigger, as PostgreSQL does if they don't fit into its files."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        for number, change in enumerate(changes):
            cursor.execute(f"CREATE TRIGGER full_disk_{number} BEFORE {change} EXECUTE FUNCTION fail()")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION fail CASCADE")


NEW_ROWS = "INSERT ON deliveries_app_delivery"
RELEASES = (
    "UPDATE ON deliveries_app_apprepository FOR EACH ROW WHEN (NEW.lease_until IS NULL AND OLD.lease_until IS NOT NULL)"
)


def test_database_disk_that_is_full_for_longer_than_a_lease(
    world: World, postgres_server: PostgresServer, settings
) -> None:
    """Claims fit into PostgreSQL's files, releases don't. Each lease that ended so counted as a worker that had died."""
    settings.LEASE_SECONDS = 6
    repo, watch = world.watch()
    with full_disk(NEW_ROWS, RELEASES):
        for _ in range(MAX_SHARED_CRASHES + settings.MAX_RETRY_ATTEMPTS):
            with pytest.raises(OperationalError):
                world.sync(watch)
            AppRepository.objects.update(lease_until=Now())
    world.sync(watch)
    assert (watch.last_error, world.outcomes(watch)) == ("", [("initial", "succeeded")])
    assert_promise_kept(world, repo, watch)


def test_full_database_disk_during_a_sync(world: World, postgres_server: PostgresServer) -> None:
    """PostgreSQL still records what fits into its files, such as why the sync waits. It said that the connection was lost."""
    repo, watch = world.watch()
    with full_disk(NEW_ROWS), pytest.raises(OperationalError):
        world.sync(watch)
    watch.refresh_from_db()
    assert (
        watch.last_error == "The database's disk is full. Free up space on it. The sync continues once there is space."
    )
    assert (watch.retry_count, watch.lease_until) == (0, None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_postgresql_outage_during_a_sync(world: World, daemons: Daemons, postgres_server: PostgresServer) -> None:
    # Enough files that both workers are busy at the same time, even on a slow machine.
    watches = [watch_slow_client(world, 600, pause=0.03), world.watch(numbered(600), name="acme/gadgets")]
    sweep = daemons.sweep()
    workers = [daemons.worker(), daemons.worker("high", "low", "default")]
    wait_for(lambda: all(len(world.requests_about(watch)) > 20 for _, watch in watches), 30)
    connections.close_all()
    postgres_server.stop()
    try:
        wait_for(lambda: daemons.logs().count("job_without_database") >= 2, 40)  # both attempts ended
        wait_for(lambda: "sweep_without_database" in daemons.logs(), 20)
    finally:
        postgres_server.start()  # other tests need it
    for repo, watch in watches:
        wait_until_synced(watch)
        assert_promise_kept(world, repo, watch)
        assert [run.outcome for run in world.runs(watch)] == ["succeeded"]
    assert duplicates(world) <= 2 * (RECORD_BATCH + MAX_IN_FLIGHT)
    assert [daemon.running for daemon in (sweep, *workers)] == [True] * 3
    assert daemons.logs().count("sweep_without_database") == 1  # not one for each second
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]
