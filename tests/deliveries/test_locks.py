"""Requests by people beside workers on PostgreSQL: one order of locks, so nothing deadlocks.

A worker locks its watch, then runs, then operations. A foreign key's check shares the app's row.
"""

import threading

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, HourlyTraffic, Outcome, SyncRun
from deliveries_app.progress import runs
from deliveries_app.services import delete_app, resync_by_app, retry_by_app, unwatch_repository, watch_repository
from deliveries_app.sweep import cleanup
from repositories_app.models import Repository
from tests.support.processes import in_threads
from tests.support.receiver import wait_for
from tests.support.world import World

COMMAND = Actor.command()


@pytest.fixture(autouse=True)
def _with_row_locks() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite locks no rows")


def waits_for_a_lock() -> bool:
    """Whether another connection waits for a row that this one, or a third one, has locked."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def test_app_is_deleted_while_a_worker_ends_its_bulk_resync(world: World) -> None:
    watches = [world.watch(name=f"acme/{number}")[1] for number in range(3)]
    operation = resync_by_app(COMMAND, world.app)
    last_is_locked = threading.Event()

    def end_the_last_run() -> None:
        last = watches[-1]
        with transaction.atomic():
            AppRepository.objects.filter(pk=last.pk).update(status="synced")
            last_is_locked.set()
            wait_for(waits_for_a_lock)
            runs.end_runs(last.pk, 2, Outcome.SUCCEEDED)

    def delete() -> None:
        assert last_is_locked.wait(10)
        delete_app(COMMAND, world.app)

    in_threads(end_the_last_run, delete)
    operation.refresh_from_db()
    assert operation.ended_at is not None
    assert sorted(SyncRun.objects.filter(operation=operation).values_list("outcome", flat=True)) == [
        Outcome.ENDED,
        Outcome.ENDED,
        Outcome.SUCCEEDED,
    ]
    assert not AppRepository.objects.alive().exists()


def test_retry_all_while_a_worker_records_the_first_batch_of_an_hour(world: World) -> None:
    """The worker has locked its watch and inserts a row that refers to the app, which the retry has locked."""
    _, watch = world.watch()
    world.answer(None)
    AppRepository.objects.update(failing_since=Now(), root_cause="server_error", status="failed")
    App.objects.update(down_count=1, cooldown_until=Now())
    watch_is_locked = threading.Event()

    def record() -> None:
        with transaction.atomic():
            AppRepository.objects.filter(pk=watch.pk).update(sequence_high=1)
            watch_is_locked.set()
            wait_for(waits_for_a_lock)
            HourlyTraffic.objects.create(app_id=world.app.pk, hour=world.app.created_at)

    def retry() -> None:
        assert watch_is_locked.wait(10)
        retry_by_app(COMMAND, world.app)

    in_threads(record, retry)
    assert HourlyTraffic.objects.count() == 1
    assert BulkOperation.objects.get().total == 1


def test_watching_while_the_orphaned_repository_is_removed(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    unwatch_repository(COMMAND, watch)
    other = world.add_app("Other")
    is_removed = threading.Event()

    def remove() -> None:
        with transaction.atomic():
            assert cleanup._remove(watch)
            is_removed.set()
            wait_for(waits_for_a_lock)  # by the request below, which has found a row that is gone once this commits

    def watch_again() -> int:
        assert is_removed.wait(10)
        return watch_repository(COMMAND, other, repo.url).watch.pk

    _, watched = in_threads(remove, watch_again)
    assert AppRepository.objects.get().pk == watched
    assert Repository.objects.get().pk != watch.repository_id
