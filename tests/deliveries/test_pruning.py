"""Pruning removes old rows in slices, and keeps what a cancel, a page or a progress bar still needs."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from io import StringIO

import django_rq
import pytest
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app import audit, jobs
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, AuditAction, BulkOperation, HourlyTraffic, Outcome, Reason, SyncRun
from deliveries_app.services import cancel_operation, cancel_request, resync_many, resync_single
from deliveries_app.sweep import loop, retention
from deliveries_app.sweep.retention import prune
from repositories_app.git import remote
from repositories_app.models import Snapshot
from tests.support.histories import assert_promise_kept
from tests.support.plans import read_rows
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer
from tests.support.world import World

OLD, RECENT = 91, 89  # days


@pytest.fixture
def watch(db) -> AppRepository:
    return make_watch(make_app("Portal"), "docs")


def days_ago(days: float) -> datetime:
    return timezone.now() - timedelta(days=days)


def run_of(watch: AppRepository | None, *, days: float = OLD, generation: int = 1, **fields) -> SyncRun:
    """Create a run that was requested and ended this many days ago."""
    moment = days_ago(days)
    fields = {"reason": Reason.CHANGE, "outcome": Outcome.SUCCEEDED} | fields
    ended = moment if fields["outcome"] else None
    return SyncRun.objects.create(
        watch=watch, requested_by="Docora", generation=generation, created_at=moment, started_at=moment, ended_at=ended,
        **fields,
    )  # fmt: skip


def operation_of(days: float, **fields) -> BulkOperation:
    fields = {"title": "Re-sync all", "total": 2, "requested_by": "anna", "ended_at": days_ago(days)} | fields
    return BulkOperation.objects.create(created_at=days_ago(days), **fields)


def left() -> set[int]:
    return set(SyncRun.objects.values_list("pk", flat=True))


def resync(watch: AppRepository) -> SyncRun:
    return resync_single(Actor.command(), watch)


def numbers(watch: AppRepository) -> tuple[int, int]:
    watch.refresh_from_db()
    return watch.generation, watch.resend_floor


# --- Runs --------------------------------------------------------------------------------------------------------------


def test_runs_older_than_the_retention_are_removed(watch: AppRepository) -> None:
    run_of(watch)
    run_of(None)  # of a removed watch
    long = run_of(watch, outcome="")  # requested long ago, ended yesterday
    SyncRun.objects.filter(pk=long.pk).update(outcome=Outcome.FAILED, ended_at=days_ago(1))
    recent = [run_of(watch, days=RECENT), run_of(None, days=RECENT)]
    assert prune()["runs"] == 2
    assert left() == {long.pk, *(run.pk for run in recent)}


def test_newest_run_of_each_watch_is_kept(watch: AppRepository) -> None:
    other = make_watch(watch.app, "site")
    for which in (watch, other):
        for days in (300, 200, 100):
            run_of(which, days=days)
    assert prune()["runs"] == 4
    assert [run.created_at.date() for run in SyncRun.objects.all()] == [days_ago(100).date()] * 2
    assert watch.runs.count() == other.runs.count() == 1


def test_run_of_the_newest_generation_is_kept(watch: AppRepository) -> None:
    """A run for a change can begin after the re-sync that supersedes it was requested."""
    kept = {run_of(watch, generation=2).pk, run_of(watch, generation=1).pk}
    assert prune()["runs"] == 0
    assert left() == kept


def test_open_runs_are_kept(watch: AppRepository) -> None:
    waiting = [run_of(watch, days=400, outcome="", generation=generation) for generation in (1, 2)]
    newest = run_of(watch, days=1, generation=3)
    assert prune().total() == 0
    assert left() == {newest.pk, *(run.pk for run in waiting)}


@pytest.mark.parametrize("later", ["", Outcome.CANCELLED])
def test_newest_uncancelled_resync_is_kept(watch: AppRepository, later: str) -> None:
    run_of(watch, days=400, generation=2, reason=Reason.RESYNC)
    floor = run_of(watch, days=300, generation=4, reason=Reason.RESYNC)
    run_of(watch, days=250, generation=5, reason=Reason.RESYNC, outcome=Outcome.CANCELLED)
    last = run_of(watch, days=200, generation=6, reason=Reason.RESYNC, outcome=later)
    newest = run_of(watch, days=1, generation=8)
    prune()
    expected = {floor.pk, newest.pk} | ({last.pk} if not later else set())
    assert left() == expected


def test_resync_is_removed_once_a_later_one_has_ended(watch: AppRepository) -> None:
    run_of(watch, days=300, generation=2, reason=Reason.RESYNC)
    run_of(watch, days=200, generation=3, reason=Reason.RESYNC, outcome=Outcome.FAILED)
    run_of(watch, days=100, generation=4)
    kept = {run.generation for run in SyncRun.objects.exclude(generation=2)}
    assert prune()["runs"] == 1
    assert {run.generation for run in SyncRun.objects.all()} == kept == {3, 4}


def test_cancel_after_pruning_restores_the_same_floor(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.settle()
    resync(watch)
    world.settle()
    assert numbers(watch) == (2, 2)
    for text in (b"3", b"4"):
        repo.commit({"a.txt": text})
        world.settle()
    SyncRun.objects.update(created_at=days_ago(OLD), started_at=days_ago(OLD), ended_at=days_ago(OLD))
    resync(watch)
    assert numbers(watch) == (3, 3)
    assert prune()["runs"] == 3  # the first sync and both changes; the newest run is the open re-sync
    assert cancel_request(Actor.command(), watch) == 1
    assert numbers(watch) == (4, 2)
    before = len(world.requests())
    world.settle()
    assert len(world.requests()) == before  # everything the app holds still counts
    assert_promise_kept(world, repo, watch)


def test_kept_resync_protects_the_floor(world: World) -> None:
    """A re-sync is superseded halfway, and the later one is cancelled. The floor must stay at the first."""
    repo, watch = world.watch({"a.txt": b"1"})
    world.settle()
    first = resync(watch)  # sends nothing, because a newer one supersedes it
    resync(watch)
    SyncRun.objects.filter(pk=first.pk).update(outcome=Outcome.FAILED, ended_at=days_ago(OLD), created_at=days_ago(OLD))
    prune()
    cancel_request(Actor.command(), watch)
    assert numbers(watch)[1] == first.generation == 2
    world.settle()
    assert [record.kind for record in world.requests()] == ["create", "create"]
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("days", [0, 10**9])
def test_runs_are_kept_forever_without_a_retention(watch: AppRepository, settings, days: int) -> None:
    settings.SYNC_RUN_RETENTION_DAYS = settings.BULK_OPERATION_RETENTION_DAYS = settings.TRAFFIC_RETENTION_DAYS = days
    run_of(watch, days=5000)
    run_of(watch, days=4000)
    operation_of(5000)
    HourlyTraffic.objects.create(app=watch.app, hour=days_ago(5000))
    assert prune() == Counter()
    assert SyncRun.objects.count() == 2


# --- Bulk operations ---------------------------------------------------------------------------------------------------


def test_operation_keeps_its_runs(watch: AppRepository) -> None:
    kept, gone = operation_of(300), operation_of(400)
    tallied = run_of(watch, days=300, operation=kept)
    run_of(watch, days=400, operation=gone)
    newest = run_of(watch, days=1)
    assert prune() == Counter(runs=1, operations=1)
    assert left() == {tallied.pk, newest.pk}
    assert list(BulkOperation.objects.all()) == [kept]


def test_run_that_outlives_its_operation(watch: AppRepository, settings) -> None:
    settings.BULK_OPERATION_RETENTION_DAYS = 30
    recent = run_of(watch, days=40, operation=operation_of(40))
    last_of_another = run_of(make_watch(watch.app, "site"), days=400, operation=operation_of(400))
    run_of(watch, days=1)
    assert prune() == Counter(operations=2)
    for run in (recent, last_of_another):
        run.refresh_from_db()
        assert run.operation is None


def test_open_and_recently_ended_operations_are_kept(
    watch: AppRepository,
) -> None:
    running, slow = operation_of(400, ended_at=None), operation_of(400, ended_at=days_ago(10))
    assert prune()["operations"] == 0
    assert set(BulkOperation.objects.all()) == {running, slow}


def test_cancel_an_operation_after_pruning(world: World) -> None:
    watches = [world.watch({"a.txt": b"1"}, name=f"acme/widgets-{number}")[1] for number in range(3)]
    world.settle()
    resync_many(Actor.command(), AppRepository.objects.all())
    world.settle()
    BulkOperation.objects.update(created_at=days_ago(400), ended_at=days_ago(400))
    SyncRun.objects.update(created_at=days_ago(400), ended_at=days_ago(400))
    operation = resync_many(Actor.command(), AppRepository.objects.all())
    assert prune() == Counter(runs=3, operations=1)
    assert cancel_operation(Actor.command(), operation) == 3
    assert [numbers(watch) for watch in watches] == [(4, 2)] * 3


@pytest.mark.parametrize("wrong", ["worker", "database"])
def test_clock_that_is_years_ahead_removes_nothing(
    watch: AppRepository, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    run_of(watch, days=RECENT)
    run_of(watch, days=0)
    HourlyTraffic.objects.create(app=watch.app, hour=days_ago(1))
    Session.objects.create(session_key="new", session_data="", expire_date=days_ago(-1))
    audit.record(Actor.command(), AuditAction.CHANGED, [watch], "Changed")
    ahead = timezone.now() + timedelta(days=1000)
    right = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: ahead if wrong == "worker" else right)
    monkeypatch.setattr(retention, "database_now", lambda: ahead if wrong == "database" else right)
    assert prune() == Counter()


# --- Traffic and sessions ----------------------------------------------------------------------------------------------


def test_traffic_and_sessions_have_their_own_rules(watch: AppRepository) -> None:
    for days in (OLD, RECENT):
        HourlyTraffic.objects.create(app=watch.app, hour=days_ago(days))
    for key, days in (("old", 1), ("new", -1)):
        Session.objects.create(session_key=key, session_data="", expire_date=days_ago(days))
    assert prune() == Counter(traffic=1, sessions=1)
    assert HourlyTraffic.objects.get().hour > days_ago(90)
    assert Session.objects.get().session_key == "new"


# --- Snapshots ---------------------------------------------------------------------------------------------------------


def snapshots_of(watch: AppRepository, ages: Iterable[float]) -> None:
    """Create snapshots that are this many days old."""
    for number, days in enumerate(ages):
        snapshot = Snapshot.objects.create(
            repository=watch.repository, commit_sha=f"{number:040}", branch="main", file_count=number, total_bytes=0
        )
        Snapshot.objects.filter(pk=snapshot.pk).update(created_at=days_ago(days))


def test_newest_snapshot_of_each_repository_is_kept(watch: AppRepository, monkeypatch) -> None:
    monkeypatch.setattr(retention, "_SLICE", 2)
    other = make_watch(watch.app, "site")
    snapshots_of(watch, [300, 0.1, 200, 100, 400])
    snapshots_of(other, [1000])
    assert prune(dry_run=True) == prune() == Counter(snapshots=4)
    assert [watch.repository.snapshots.get().file_count, other.repository.snapshots.get().file_count] == [1, 0]
    assert prune() == Counter()


def test_last_of_simultaneous_snapshots_is_kept(watch: AppRepository) -> None:
    snapshots_of(watch, [1, 1, 1])
    Snapshot.objects.update(created_at=days_ago(1))
    newest = watch.repository.snapshots.first()
    assert prune() == Counter(snapshots=2)
    assert watch.repository.snapshots.get() == newest


def test_sync_after_snapshots_were_removed(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"a"})
    for number in range(3):
        repo.commit({f"{number}.txt": b"x"})
        world.settle()
    assert prune()["snapshots"] == 2
    repo.force_push({"a.txt": b"a"})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert watch.repository.snapshots.first().file_count == 1


# --- Slices, command and job -------------------------------------------------------------------------------------------


def test_interrupted_pruning_continues_next_time(watch: AppRepository, monkeypatch) -> None:
    monkeypatch.setattr(retention, "_SLICE", 3)
    for _ in range(4):
        run_of(watch, operation=operation_of(400))
    for _ in range(6):
        run_of(watch)
    asked = iter([False, False, True])
    assert prune(stop=lambda: next(asked, True))["runs"] == 6
    assert (SyncRun.objects.count(), BulkOperation.objects.count()) == (4, 4)

    slices = 0

    def killed() -> bool:
        nonlocal slices
        slices += 1
        if slices > 2:
            raise SystemExit
        return False

    with pytest.raises(SystemExit):
        prune(stop=killed)
    assert SyncRun.objects.count() == 1
    assert prune() == Counter(operations=4)
    assert prune() == Counter()
    assert SyncRun.objects.get().operation is None


def test_dry_run_reports_and_removes_nothing(watch: AppRepository) -> None:
    for days in (400, 300, 1):
        run_of(watch, days=days, operation=operation_of(days))
    HourlyTraffic.objects.create(app=watch.app, hour=days_ago(OLD))

    def said(*options: str) -> str:
        out = StringIO()
        call_command("prune", *options, stdout=out)
        return out.getvalue().strip()

    assert said("--dry-run") == "Would be removed: 1 sync run, 1 bulk operation, 1 hour of traffic."
    assert SyncRun.objects.count() == 3
    assert said() == "Removed: 1 sync run, 1 bulk operation, 1 hour of traffic."
    assert said() == "Removed: nothing."


def test_queries_grow_with_slices_not_rows(watch: AppRepository) -> None:
    def queries_for(rows: int) -> int:
        for _ in range(rows):
            run_of(watch)
            run_of(None, operation=operation_of(400))
        with CaptureQueriesContext(connection) as queries:
            prune()
        return len(queries)

    assert queries_for(30) == queries_for(3)


def test_runs_of_a_busy_watch_are_not_all_read_for_each_of_them(watch: AppRepository, postgres_server) -> None:
    count = 1000
    moments = [days_ago(OLD + number / 10) for number in range(count, 0, -1)]
    SyncRun.objects.bulk_create(
        SyncRun(watch=watch, reason=Reason.CHANGE, generation=1, created_at=at, ended_at=at, outcome=Outcome.SUCCEEDED)
        for at in moments
    )
    old = retention._old_runs(timezone.now(), BulkOperation.objects.none())
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE deliveries_app_syncrun")
    assert old.count() == count - 1
    assert read_rows(lambda: list(old)) < 10 * count


def test_later_runs_of_a_busy_watch_are_not_all_read_if_most_watches_have_few(
    watch: AppRepository, postgres_server
) -> None:
    count, moment = 1000, days_ago(OLD)
    others = [make_watch(watch.app, f"quiet-{number}") for number in range(200)]
    SyncRun.objects.bulk_create(
        SyncRun(watch=one, reason=Reason.CHANGE, generation=1, created_at=at, ended_at=at, outcome=Outcome.SUCCEEDED)
        for number in range(count)
        for one in [watch, *others[number % 200 :: 200]]
        for at in [moment - timedelta(hours=count - number)]
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE deliveries_app_syncrun")
    old = retention._old_runs(timezone.now(), BulkOperation.objects.none()).order_by("created_at")
    assert old.count() == 2 * count - len(others) - 1
    assert read_rows(lambda: list(old)) < 20 * count


def test_sweep_queues_pruning_once_an_hour(db, redis_client, valkey_server: ValkeyServer) -> None:
    def waiting() -> list[str]:
        return django_rq.get_queue("low").get_job_ids()

    with remote.new_client() as client:
        loop.sweep_once(client)
        assert waiting() == ["prune"]
        django_rq.get_queue("low").empty()
        loop.sweep_once(client)
        assert waiting() == []
        redis_client.delete("docora:first:prune")  # an hour later
        loop.sweep_once(client)
        assert waiting() == ["prune"]
        django_rq.get_queue("low").empty()
        redis_client.expire("docora:first:prune", timedelta(days=365))  # its clock was a year ahead
        for _ in range(2):
            loop.sweep_once(client)
        assert waiting() == ["prune"]
        valkey_server.stop()
        loop.sweep_once(client)


def test_job_prunes_like_the_command(watch: AppRepository) -> None:
    run_of(watch)
    kept = run_of(watch, days=1)
    jobs.prune("old")
    assert left() == {kept.pk}
