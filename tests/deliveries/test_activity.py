"""What an unfinished operation is doing: moving, with its recent rate, or waiting, and for what."""

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from redis import Redis

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Result, Status, SyncPause, SyncRun
from deliveries_app.progress import activity, live, runs
from deliveries_app.progress.activity import Activity
from deliveries_app.reports import history
from deliveries_app.services import Rollout, cancel_operation, resync_by_app, resync_single, unwatch_repository
from deliveries_app.services.rollout import release_due
from docora.redis import live_counters
from docora.redis.live_counters import Movement, _movement
from repositories_app.git.url import host_of
from repositories_app.models import HostOutage, Repository
from tests.support.plans import read_rows
from tests.support.staff import make_app, make_watch, occupy, staff
from tests.support.valkey import ValkeyServer


@pytest.fixture
def app(db) -> App:
    app = make_app("Portal")
    for name in ("docs", "site"):
        make_watch(app, name)
    return app


@pytest.fixture
def operation(app: App) -> BulkOperation:
    operation = resync_by_app(Actor.system(), app)
    live.seed_operation(operation)
    return operation


def start(run: SyncRun, done: int = 10) -> None:
    """Begin a run, as a worker does: it holds the lease and has had files acknowledged."""
    run = SyncRun.objects.select_related("operation").get(pk=run.pk)
    run.started_at = run.started_at or timezone.now() - timedelta(seconds=60)
    run.files_done = done
    run.save()
    AppRepository.objects.filter(pk=run.watch_id).update(
        status=Status.SCANNING, lease_until=timezone.now() + timedelta(seconds=20)
    )
    runs.seed(run)


def doing(operation: BulkOperation) -> Activity | None:
    return activity.of_operation(operation, live.of_operation(operation))


def said(operation: BulkOperation) -> tuple[str, str]:
    shown = doing(operation)
    assert shown is not None
    assert (shown.rate, shown.seconds_left, shown.pace, shown.time_left) == (None, None, "", "")
    return shown.label, shown.text


def set_samples(redis: Redis, operation: BulkOperation, *samples: tuple[int, int]) -> None:
    """Replace the samples with these, given as (seconds ago, files)."""
    now = redis.time()[0]
    key = f"docora:progress:{operation.operation_id}:samples"
    redis.delete(key)
    redis.zadd(key, {f"{now - ago}:{files}": now - ago for ago, files in samples})


def test_a_poll_reads_only_runs_of_watches_that_are_syncing(app: App, postgres_server) -> None:
    count, syncing = 500, 30
    other = make_app("Search")
    repositories = Repository.objects.bulk_create(
        Repository(canonical_url=f"https://github.com/acme/library-{number}", owner="acme", name=f"library-{number}")
        for number in range(count)
    )
    AppRepository.objects.bulk_create(
        AppRepository(app=owner, repository=repository, github_url=repository.canonical_url, status=Status.SYNCED)
        for owner, watched in ((app, repositories), (other, repositories[:syncing]))
        for repository in watched
    )
    SyncRun.objects.bulk_create(
        SyncRun(watch=watch, reason="change", generation=1, outcome=Outcome.SUCCEEDED, ended_at=timezone.now())
        for watch in AppRepository.objects.all()
        for _ in range(10)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")  # many runs have ended, none is open and no watch is leased, as usual
    operation = resync_by_app(Actor.system(), app)
    live.seed_operation(operation)
    others = resync_by_app(Actor.system(), other)
    for run in [*others.runs.all(), *operation.runs.all()[:1]]:
        start(run)
    assert activity._a_syncing_watch(operation.pk)
    assert read_rows(lambda: activity._a_syncing_watch(operation.pk), SyncRun._meta.db_table) <= syncing + 1


# --- Waiting ---------------------------------------------------------------------------------------------------------


def test_waiting_for_a_worker(operation: BulkOperation) -> None:
    assert said(operation) == ("Queued", "waiting for a worker")


def test_waiting_while_redis_is_down(operation: BulkOperation, valkey_server: ValkeyServer) -> None:
    assert said(operation) == ("Queued", "waiting for a worker")
    valkey_server.stop()
    try:
        assert said(operation) == ("Queued", "waiting for Redis, which isn't responding or rejects writes")
    finally:
        valkey_server.start()  # other tests need it


def test_waiting_for_a_slot(operation: BulkOperation, app: App) -> None:
    occupy(app)
    assert said(operation) == ("Queued", "waiting for a free slot in the app")


def test_paused(operation: BulkOperation, app: App) -> None:
    App.objects.update(paused=True)
    assert said(operation) == ("Paused", "the app is paused")
    SyncPause.objects.create(paused_by="anna")
    assert said(operation) == ("Paused", "all syncing is paused")


def test_importing(operation: BulkOperation) -> None:
    """No worker starts before the import is complete, and an interrupted one waits for a person."""
    AppRepository.objects.update(arriving=True)
    assert said(operation) == ("Queued", "its records are being imported")


def test_superseded_canary(app: App) -> None:
    """The other repositories wait for the later re-sync of the canary."""
    operation = resync_by_app(Actor.system(), app, rollout=Rollout(canary=True))
    release_due()
    [run] = operation.runs.select_related("watch")
    assert said(operation) == ("Queued", "waiting for a worker")
    resync_single(Actor.system(), run.watch)
    assert said(operation) == ("Queued", "waiting for a later request for the first repository")
    assert history.outcomes([operation])[operation.pk].result_of(operation) == Result.RUNNING  # in lists and exports
    unwatch_repository(Actor.system(), run.watch)
    assert said(operation) == ("Queued", "releasing the next repository shortly")


def test_on_hold(operation: BulkOperation) -> None:
    App.objects.update(cooldown_until=timezone.now() + timedelta(minutes=5))
    assert said(operation) == ("On hold", "endpoint cooldown")


@pytest.mark.parametrize("hold", ["cooldown", "circuit", "host", "retrying"])
def test_next_try_is_that_of_the_first_repository(operation: BulkOperation, admin: Client, hold: str) -> None:
    """The pages of the operation and of the repository that is tried first say the same."""
    now = timezone.now()
    first, second = AppRepository.objects.order_by("pk").select_related("repository")
    AppRepository.objects.filter(pk=second.pk).update(next_sync_at=now + timedelta(minutes=70))
    AppRepository.objects.filter(pk=first.pk).update(next_sync_at=now - timedelta(minutes=1))
    expected = now + timedelta(minutes=40, seconds=30)
    match hold:
        case "cooldown":
            App.objects.update(cooldown_until=expected)
        case "circuit":
            AppRepository.objects.update(retry_count=1)
            Repository.objects.update(circuit_open_until=expected)
        case "host":
            urls = Repository.objects.values_list("canonical_url", flat=True)
            for host in {host_of(url) for url in urls}:
                HostOutage.objects.create(host=host, since=now, retry_at=expected)
        case "retrying":
            AppRepository.objects.update(failing_since=now, root_cause="http_5xx", retry_count=1)
            AppRepository.objects.filter(pk=first.pk).update(next_sync_at=expected)
    shown = doing(operation)
    assert shown is not None
    assert shown.next_try == expected
    sentence = re.compile(r"<span>Next try <time [^>]*>in 40 min</time></span>")
    assert sentence.search(admin.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text)
    assert sentence.search(admin.get(f"/admin/deliveries_app/apprepository/{first.pk}/change/").text)


def test_due_retry_has_no_time(operation: BulkOperation, admin: Client) -> None:
    AppRepository.objects.update(failing_since=timezone.now(), root_cause="http_5xx", retry_count=1)
    assert "Next try" not in admin.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text


def test_retrying(operation: BulkOperation) -> None:
    AppRepository.objects.update(failing_since=timezone.now(), root_cause="http_5xx", retry_count=1)
    assert said(operation) == ("Retrying", "waiting for the next attempt")


def test_the_repository_closest_to_moving_decides(operation: BulkOperation) -> None:
    first, _ = AppRepository.objects.order_by("pk")
    AppRepository.objects.exclude(pk=first.pk).update(failing_since=timezone.now(), root_cause="http_5xx")
    assert said(operation) == ("Queued", "waiting for a worker")


def test_dead_worker(operation: BulkOperation, redis_client: Redis) -> None:
    """Until its lease ends, nothing is acknowledged; then the sync waits for another worker. No rate is ever shown."""
    start(operation.runs.order_by("pk")[0])
    set_samples(redis_client, operation, (50, 0), (25, 10))
    label, text = said(operation)
    assert label == "Stalled"
    assert re.fullmatch(r"nothing acknowledged for 2\d s", text)
    AppRepository.objects.filter(status=Status.SCANNING).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert said(operation) == ("Queued", "waiting for a worker")


def test_stalled_since_the_last_acknowledged_file(operation: BulkOperation, redis_client: Redis) -> None:
    """Answers that refuse files show that something moves, but acknowledge nothing."""
    start(operation.runs.order_by("pk")[0])
    set_samples(redis_client, operation, (55, 0), (50, 10), (35, 10), (21, 10))
    label, text = said(operation)
    assert label == "Stalled"
    assert re.fullmatch(r"nothing acknowledged for 5\d s", text)


# --- Moving ----------------------------------------------------------------------------------------------------------


def test_reading_the_repository(operation: BulkOperation) -> None:
    AppRepository.objects.update(status=Status.SCANNING, lease_until=timezone.now() + timedelta(seconds=20))
    assert said(operation) == ("Syncing", "reading the repository")


def test_rate_and_time_left_come_from_the_last_seconds(operation: BulkOperation, redis_client: Redis) -> None:
    start(operation.runs.order_by("pk")[0], done=40)
    set_samples(redis_client, operation, (55, 0), (30, 0), (10, 20), (0, 40))
    shown = doing(operation)
    assert shown is not None
    assert (shown.label, shown.rate) == ("Syncing", 2.0)  # 40 files in 20 s
    assert shown.seconds_left == pytest.approx((200 - 40) / 2)
    assert (shown.pace, shown.time_left) == ("2.0 files/s", "about 1 min left")


def test_time_left_is_that_of_unfinished_runs(
    operation: BulkOperation, redis_client: Redis, django_capture_on_commit_callbacks
) -> None:
    """What is left of a run that ended early is not sent, but stays in the total."""
    first, second = operation.runs.select_related("watch").order_by("pk")
    start(second, done=40)
    with django_capture_on_commit_callbacks(execute=True):
        unwatch_repository(Actor.system(), first.watch)
    for is_counted in (False, True):
        set_samples(redis_client, operation, (20, 0), (0, 40))
        shown = doing(operation)
        assert shown is not None
        assert shown.seconds_left == pytest.approx((100 - 40) / 2)
        if not is_counted:
            redis_client.delete(f"docora:progress:{operation.operation_id}")  # then the rows are counted


def test_time_left_of_a_paced_operation_is_at_least_that_of_its_releases(app: App, redis_client: Redis) -> None:
    operation = resync_by_app(Actor.system(), app, rollout=Rollout(pace=1))
    release_due()
    live.seed_operation(operation)
    start(operation.runs.get(), done=90)
    set_samples(redis_client, operation, (20, 0), (0, 90))
    shown = doing(operation)
    assert shown is not None
    assert (shown.rate, shown.seconds_left) == (4.5, 60), "not (200 - 90) / 4.5: the other is released in a minute"


def test_paused_app_shows_no_rate_although_files_were_just_sent(operation: BulkOperation, redis_client: Redis) -> None:
    start(operation.runs.order_by("pk")[0], done=40)
    set_samples(redis_client, operation, (15, 0), (0, 40))
    App.objects.update(paused=True)
    AppRepository.objects.update(status=Status.PENDING, lease_until=None)  # its worker stops within a second
    assert said(operation) == ("Paused", "the app is paused")


def test_without_redis_there_is_no_rate(operation: BulkOperation, valkey_server) -> None:
    start(operation.runs.order_by("pk")[0])
    valkey_server.stop()
    assert said(operation) == ("Syncing", "")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([(100, 0)], Movement(None, 0, 0)),
        ([(97, 0), (100, 30)], Movement(None, 0, 0)),  # too young for a rate
        ([(95, 0), (100, 30)], Movement(6, 0, 0)),
        ([(60, 0), (70, 20), (100, 60)], Movement(2, 0, 0)),  # 40 files in the window of 20 s
        ([(60, 0), (80, 20), (100, 60)], Movement(2, 0, 0)),
        ([(60, 0), (85, 60)], Movement(3, 15, 15)),
        ([(60, 0), (78, 60)], Movement(None, 22, 22)),
        ([(45, 0), (50, 60), (65, 60), (79, 60)], Movement(None, 21, 50)),  # refused since then
        ([(45, 60), (79, 60)], Movement(None, 21, 55)),
    ],
)
def test_movement(samples: list[tuple[int, int]], expected: Movement) -> None:
    assert _movement(samples, 100) == expected


def test_counters_take_one_sample_a_second(redis_client: Redis) -> None:
    live_counters.start("run_1", {"files_total": 10, "files_done": 0})
    for _ in range(20):
        live_counters.advance("run_1", files_done=1)
    samples = redis_client.zrange("docora:progress:run_1:samples", 0, -1)
    assert len(samples) <= 3
    assert samples[-1].endswith(b":20")
    live_counters.finish("run_1")
    assert redis_client.keys("docora:progress:run_1*") == []


def test_samples_from_before_the_clock_was_set_back(redis_client: Redis) -> None:
    """They would hide the movement until that time comes again."""
    live_counters.start("run_1", {"files_total": 10, "files_done": 0})
    ahead = redis_client.time()[0] + 3600
    redis_client.zadd("docora:progress:run_1:samples", {f"{ahead}:5": ahead})
    live_counters.advance("run_1", files_done=1)
    _, movement = live_counters.read_moving("run_1")
    live_counters.finish("run_1")
    assert movement is not None
    assert 0 <= movement.idle < 5


def test_only_recent_samples_are_kept(redis_client: Redis) -> None:
    """Each poll reads all of them, and a run may take a day."""
    live_counters.start("run_1", {"files_total": 10, "files_done": 0})
    key, now = "docora:progress:run_1:samples", redis_client.time()[0]
    redis_client.zadd(key, {f"{now - ago}:0": now - ago for ago in (900, 100, 30)})
    live_counters.advance("run_1", files_done=1)
    assert redis_client.zrange(key, 0, -1)[0] == b"%d:0" % (now - 30)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "less than a minute left"), (80, "about 1 min left"), (200, "about 3 min left"), (7300, "about 2 h left")],
)
def test_time_left_is_rounded(seconds: float, text: str) -> None:
    assert Activity("syncing", "Syncing", rate=1.0, seconds_left=seconds).time_left == text


# --- The end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "result"),
    [
        ([Outcome.SUCCEEDED, Outcome.SUCCEEDED], Result.SUCCEEDED),
        ([Outcome.SUCCEEDED, Outcome.FAILED], Result.PARTLY_FAILED),
        ([Outcome.FAILED, Outcome.PAUSED], Result.FAILED),
        ([Outcome.SUPERSEDED, Outcome.SUPERSEDED], Result.SUPERSEDED),
        ([Outcome.SUCCEEDED, Outcome.SUPERSEDED], Result.SUCCEEDED),
        ([Outcome.ENDED, Outcome.ENDED], Result.CANCELLED),
    ],
)
def test_result(operation: BulkOperation, outcomes: list[Outcome], result: Result) -> None:
    admin = staff("olga", "view_apprepository", "view_bulkoperation")
    for run, outcome in zip(operation.runs.order_by("pk"), outcomes, strict=True):
        SyncRun.objects.filter(pk=run.pk).update(outcome=outcome, ended_at=timezone.now(), started_at=timezone.now())
    runs.close_operations([operation.pk])
    operation.refresh_from_db()
    assert doing(operation) is None
    shown = admin.get(f"/admin/progress/{operation.operation_id}/?page=1").text
    assert f'data-outcome="{result.value}"' in shown
    assert f"<title>{operation.title} | Docora</title>" in shown
    assert "<dt>Ended</dt>" in shown
    assert "in progress" not in shown
    assert f"{result.label}</span>" in admin.get("/admin/deliveries_app/bulkoperation/").text


def test_result_of_a_cancelled_operation(operation: BulkOperation) -> None:
    cancel_operation(Actor.system(), operation)
    operation.refresh_from_db()
    assert operation.result_of(succeeded=1, failed=0, superseded=0) == Result.CANCELLED


def test_poll_of_the_page_shows_the_percentage_in_the_tab(operation: BulkOperation, client: Client) -> None:
    admin = staff("olga", "view_apprepository", "view_bulkoperation")
    start(operation.runs.order_by("pk")[0], done=50)
    shown = admin.get(f"/admin/progress/{operation.operation_id}/?page=1").text
    assert f"<title>25% · {operation.title} | Docora</title>" in shown
    assert "<title>" not in admin.get(f"/admin/progress/{operation.operation_id}/").text
