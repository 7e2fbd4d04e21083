"""The queue page: running, waiting and scheduled syncs, workers, and the operator's buttons."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from redis import Redis
from rq.utils import utcformat

from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    DriftCheck,
    DriftState,
    Outcome,
    Status,
    SyncPause,
    SyncRun,
)
from deliveries_app.monitoring import alerts
from deliveries_app.monitoring.counts import WatchCounts
from deliveries_app.progress import runs
from deliveries_app.reports import queue as queue_report
from deliveries_app.scheduling import request_sync
from deliveries_app.services import resync_many, resync_single
from deliveries_app.sweep.cleanup import CLEAN_UP_JOB
from deliveries_app.sweep.retention import PRUNE_JOB
from docora.db.clock import from_now
from docora.redis import heartbeat, queues
from tests.support.staff import make_app, make_watch, occupy, staff
from tests.support.valkey import ValkeyServer

PAGE = "/admin/deliveries_app/queue/"
LIVE = "/admin/live/queue/"
SEES = ("view_queue", "view_apprepository", "view_app")
ME = Actor.command()
WORKER = "box:7:0123abcd"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", *SEES, "control_queue")


@pytest.fixture
def viewer(db) -> Client:
    return staff("victor", *SEES)


def lease(watch: AppRepository, settings, *, left: float | None = None, owner: str = WORKER) -> None:
    """Lease the watch to a worker for that many seconds."""
    AppRepository.objects.filter(pk=watch.pk).update(
        status=Status.SCANNING,
        next_sync_at=Now(),
        lease_until=from_now(settings.LEASE_SECONDS if left is None else left),
        lease_owner=owner,
    )


def begin(watch: AppRepository, files_done: int = 40) -> SyncRun:
    run = runs.open_run(watch, "resync", requested_by="anna")  # type: ignore[arg-type]
    run.save()
    runs.set_totals(run, files=100, size=5_000, left_out={}, commit="a" * 40)
    runs.count(run, files_done=files_done, bytes_done=files_done * 50, files_failed=0)
    runs.seed(run)
    return run


def register(
    redis: Redis, name: str, *, pid: int = 7, seconds_ago: float = 1, at: str = "", state: str = "idle"
) -> None:
    """Register a worker as rq does."""
    moment = utcformat(timezone.now() - timedelta(seconds=seconds_ago))
    fields = {"hostname": "box", "pid": pid, "state": state, "queues": "high,default,low", "birth": moment}
    redis.sadd("rq:workers", f"rq:worker:{name}")
    redis.hset(f"rq:worker:{name}", mapping=fields | {"last_heartbeat": moment})
    if at:
        redis.sadd(f"rq:worker:{name}:executions", f"{at}:1")


def flat(text: str) -> str:
    return " ".join(text.split())


def section(client: Client, name: str, url: str = PAGE) -> str:
    """Return the text below the heading with this id, in one line."""
    page = client.get(url)
    assert page.status_code == 200
    return flat(page.text.split(f'<h2 id="{name}">')[1].split("<h2 ")[0])


# --- What it shows -------------------------------------------------------------------------------------------------------


def test_empty_queue(operator: Client) -> None:
    page = operator.get(PAGE).text
    for expected in ("No sync is running.", "Nothing is waiting.", "Nothing is scheduled."):
        assert expected in page
    assert "No worker is running" in page
    assert "or start <code>manage.py up</code> or <code>manage.py rqworker high default low</code>." in page
    assert "Docora is checking repositories" not in page


def test_watch_whose_lease_ends_meanwhile_is_listed_once(operator: Client, settings, monkeypatch) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    lease(watch, settings)
    monkeypatch.setattr(AppRepositoryQuerySet, "free", lambda watches: watches)  # as the second query sees it
    assert operator.get(PAGE).text.count(f'action="{PAGE}{watch.pk}/cancel/"') == 1


def test_sync_that_starts_after_the_count_is_counted_as_running(
    operator: Client, watches, settings, monkeypatch
) -> None:
    request_sync(AppRepository.objects.all())
    real = queue_report.count_watches

    def count_then_start() -> WatchCounts:
        counts = real()
        lease(watches[0], settings)
        return counts

    monkeypatch.setattr(queue_report, "count_watches", count_then_start)
    view = queue_report.read_queue()
    assert (view.counts.leased, len(view.running), view.more_running) == (1, 1, 0)
    assert (view.counts.due, len(view.waiting), view.more_waiting, view.unqueued) == (2, 2, 0, 2)


def test_sync_that_starts_between_the_lists_is_listed_as_running(watches, settings, monkeypatch) -> None:
    request_sync(AppRepository.objects.filter(pk=watches[0].pk))
    real = AppRepositoryQuerySet.free

    def start_then_free(self: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
        lease(watches[0], settings)
        return real(self)

    monkeypatch.setattr(AppRepositoryQuerySet, "free", start_then_free)
    view = queue_report.read_queue()
    assert ([line.watch.pk for line in view.running], view.waiting) == ([watches[0].pk], [])


def test_queue_is_in_the_list_of_models(operator: Client) -> None:
    assert f'href="{PAGE}"' in operator.get("/admin/").text
    assert ">Queue</a>" in operator.get("/admin/").text


def test_running_sync_shows_request_bar_and_worker(operator: Client, watches, redis_client: Redis, settings) -> None:
    lease(watches[0], settings)
    begin(watches[0])
    queues.enqueue("high", "deliveries_app.jobs.sync_watch", watches[0].pk, watches[0].job_id)
    redis_client.delete("rq:queue:high")  # taken by a worker
    register(redis_client, WORKER, at=watches[0].job_id, state="busy")
    shown = section(operator, "running")
    assert "acme/docs" in shown
    assert "Re-sync by anna" in shown
    assert 'value="40"' in shown
    assert "40 / 100" in shown
    assert WORKER in shown
    assert "died" not in shown
    workers = section(operator, "workers")
    assert "acme/docs → Portal" in workers
    assert "Busy" in workers


def test_reading_and_cancelling_syncs(operator: Client, watches, settings) -> None:
    lease(watches[0], settings)
    assert "Reading the repository" in section(operator, "running")
    assert "Cancel" in section(operator, "running")
    operator.post(f"{PAGE}{watches[0].pk}/cancel/")
    shown = section(operator, "running")
    assert "waiting for in-flight requests" in shown
    assert "<button" not in shown


def test_check_for_differences_is_not_listed_as_a_change(operator: Client, watches, settings) -> None:
    DriftCheck.objects.create(watch=watches[1], requested_by="anna")
    request_sync(AppRepository.objects.filter(pk__in=[watches[1].pk, watches[2].pk]))
    waiting = section(operator, "waiting")
    assert waiting.count("<td>Check for differences</td>") == waiting.count("<td>Change</td>") == 1
    lease(watches[1], settings)
    assert "Reading the repository" in section(operator, "running")
    DriftCheck.objects.update(state=DriftState.CHECKING)
    running = section(operator, "running")
    assert "<td>Check for differences</td>" in running
    assert "Comparing the app's files" in running
    begin(watches[1])  # HEAD had moved after all
    assert "40 / 100" in section(operator, "running")


def test_waiting_syncs_are_in_queue_order(operator: Client, watches) -> None:
    request_sync(AppRepository.objects.filter(pk__in=[watch.pk for watch in watches]))
    for queue, watch in (("default", watches[0]), ("high", watches[1])):
        queues.enqueue(queue, "deliveries_app.jobs.sync_watch", watch.pk, watch.job_id)
    queues.enqueue("low", CLEAN_UP_JOB, "ended", "clean-up")
    shown = section(operator, "waiting")
    names = ["acme/site", "acme/docs", "not queued yet", "Cleanup"]
    assert sorted(names, key=shown.index) == names
    assert "Cancel" in shown
    view = queue_report.read_queue()
    assert view.queue is not None
    assert view.queue.lengths == {"high": 1, "default": 1, "low": 1}
    assert [(line.watch.pk, line.queue) for line in view.waiting] == [
        (watches[1].pk, "high"),
        (watches[0].pk, "default"),
        (watches[2].pk, ""),
    ]
    assert (view.counts.due, view.counts.held, view.unqueued) == (3, 0, 1)


def test_jobs_that_are_not_for_a_repository_say_what_they_do(operator: Client, watches, redis_client: Redis) -> None:
    queues.enqueue("low", PRUNE_JOB, "old", "prune")
    queues.enqueue("high", alerts.JOB, "late", "alerts")
    queues.enqueue("low", "deliveries_app.jobs.sync_watch_alone", str(watches[0].pk), "alone")
    shown = section(operator, "waiting")
    assert "Removing old history" in shown
    assert "Sending alerts in place of the sweep" in shown
    assert "no longer watched" not in shown
    assert "sync_watch" not in shown
    register(redis_client, WORKER, at="alerts", state="busy")
    assert "Alerts" in section(operator, "workers")
    assert "Cleanup" not in section(operator, "workers")


def test_held_syncs_name_the_reason(operator: Client, watches) -> None:
    request_sync(AppRepository.objects.all())
    App.objects.filter(pk=watches[0].app_id).update(paused=True)
    App.objects.filter(pk=watches[2].app_id).update(cooldown_until=timezone.now() + timedelta(seconds=90))
    shown = section(operator, "waiting")
    assert "Paused: the app is paused" in shown
    held_until = AppRepository.objects.get(pk=watches[2].pk).app.cooldown_until
    assert f"On hold until {held_until:%H:%M %Z}: endpoint cooldown" in shown
    view = queue_report.read_queue()
    assert (view.counts.due, view.counts.held, view.unqueued) == (0, 3, 0)
    App.objects.update(paused=False, cooldown_until=None)
    busy = occupy(watches[0].app)
    assert section(operator, "waiting").count("Queued: waiting for a free slot in the app") == 2
    busy.delete()
    SyncPause.objects.create(paused_by="anna")
    assert section(operator, "waiting").count("Paused: all syncing is paused") == 3
    assert (queue_report.read_queue().counts.held, queue_report.read_queue().unqueued) == (3, 0)


def test_obsolete_jobs_are_only_counted(operator: Client, watches) -> None:
    queues.enqueue("high", "deliveries_app.jobs.sync_watch", watches[0].pk, watches[0].job_id)
    shown = section(operator, "waiting")
    assert "Nothing is waiting." in shown
    assert "1 more job in the queue with nothing left to do." in shown


def test_scheduled_syncs_show_time_and_cause_soonest_first(operator: Client, watches) -> None:
    failing = {"failing_since": Now(), "root_cause": "http_5xx", "last_error": "502"}
    rows = AppRepository.objects.filter
    rows(pk=watches[0].pk).update(status="failed", next_sync_at=from_now(200), **failing)
    rows(pk=watches[1].pk).update(status="pending_snapshot", retry_count=2, next_sync_at=from_now(40), **failing)
    rows(pk=watches[2].pk).update(next_sync_at=from_now(3000))
    shown = section(operator, "scheduled")
    order = [
        "acme/site",
        "Attempt 3 of 5",
        "Check for changes, then try again",
        "Search",
        "Check for changes</td>",
    ]
    assert sorted(order, key=shown.index) == order
    assert shown.count("Endpoint: 5xx") == 2
    assert f'/admin/deliveries_app/apprepository/{watches[1].pk}/change/"' in shown
    assert queue_report.read_queue().counts.scheduled == 3


def test_scheduled_syncs_wait_for_the_end_of_a_pause_or_cooldown(operator: Client, watches) -> None:
    rows = AppRepository.objects.filter(pk=watches[0].pk)
    rows.update(status="failed", failing_since=Now(), root_cause="http_5xx", next_sync_at=from_now(40))
    App.objects.update(cooldown_until=from_now(400))
    shown = section(operator, "scheduled")
    assert "in 6 min" in shown
    assert "Endpoint cooldown" in shown
    SyncPause.objects.create(paused_by="anna")
    shown = section(operator, "scheduled")
    assert "All syncing is paused" in shown
    assert "<time" not in shown


def test_lists_are_bounded_and_count_the_rest(operator: Client, db, monkeypatch, settings) -> None:
    monkeypatch.setattr(queue_report, "SHOWN", 2)
    monkeypatch.setattr(queue_report, "SCHEDULED_SHOWN", 2)
    app = make_app("Portal")
    for number in range(5):
        lease(make_watch(app, f"running-{number}"), settings)
        make_watch(app, f"waiting-{number}", next_sync_at=timezone.now())
        make_watch(app, f"later-{number}", next_sync_at=timezone.now() + timedelta(hours=1))
    for name in ("running", "waiting", "scheduled"):
        assert "and 3 more" in section(operator, name)


# --- Outages and lost workers -----------------------------------------------------------------------------------------


def test_expiring_lease_shows_when_it_ends(operator: Client, watches, redis_client: Redis, settings) -> None:
    settings.LEASE_SECONDS = 3600.0
    lease(watches[0], settings, left=640)
    assert "This worker has died: another worker takes over in 10 min" in section(operator, "running")
    register(redis_client, WORKER)
    shown = section(operator, "running")
    assert "No heartbeat for 49 min" in shown
    assert "If the worker has died, another worker takes over in 10 min" in shown


def test_extended_lease_means_a_live_worker(operator: Client, watches, settings) -> None:
    lease(watches[0], settings, owner="elsewhere:1")
    assert "died" not in section(operator, "running")


def test_silent_worker_is_gone_and_its_leases_are_shown(
    operator: Client, watches, redis_client: Redis, settings
) -> None:
    settings.LEASE_SECONDS = 3600.0
    register(redis_client, WORKER, seconds_ago=70, state="busy")
    register(redis_client, "box:7:another", pid=7)  # in another container with the same host name
    assert "Died, or cut off from Redis." in section(operator, "workers")
    lease(watches[0], settings, left=640)
    shown = section(operator, "workers")
    assert "Died, or cut off from Redis. Another worker takes over acme/docs → Portal in 10 min" in shown
    assert shown.count("Died</span>") == 1
    assert queue_report.read_queue().workers_alive == 1
    page = operator.get(PAGE).text
    assert (
        "The sweep is not running.</strong> It hasn't run in the last 24 hours. Until it does, Docora doesn't check for changes"
        in page
    )
    assert "Docora is checking repositories" not in page
    heartbeat.beat()
    page = operator.get(PAGE).text
    assert "is not running" not in page
    assert "No worker is running" not in page
    assert "Docora is checking repositories and sending changed files." in page


def test_redis_that_rejects_writes_is_shown(operator: Client, valkey_server: ValkeyServer) -> None:
    with valkey_server.refusing_writes():
        page = operator.get(PAGE).text
    assert "Redis isn't responding or rejects writes" in page
    assert "No worker" not in page
    assert "The sweep is not running" not in page


def test_redis_outage_is_shown(operator: Client, watches, settings, valkey_server: ValkeyServer) -> None:
    settings.LEASE_SECONDS = 3600
    lease(watches[0], settings, left=640)
    begin(watches[0])
    request_sync(AppRepository.objects.filter(pk=watches[1].pk))
    AppRepository.objects.filter(pk=watches[2].pk).update(next_sync_at=from_now(40))
    valkey_server.stop()
    page = operator.get(PAGE)
    assert page.status_code == 200
    assert "Redis isn't responding" in page.text
    assert "40 / 100" in section(operator, "running")
    assert "If the worker has died" in section(operator, "running")
    assert "unknown" in section(operator, "waiting")
    assert "Search" in section(operator, "scheduled")
    assert "Unknown while Redis isn't working." in section(operator, "workers")
    operator.post(f"{PAGE}{watches[1].pk}/cancel/")
    assert "Nothing is waiting." in section(operator, "waiting")


# --- Cancel --------------------------------------------------------------------------------------------------------------


def test_cancelling_a_waiting_sync_cancels_its_resync(operator: Client, watches) -> None:
    run = resync_single(ME, watches[0])
    page = operator.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True)
    assert page.redirect_chain == [(PAGE, 302)]
    assert "Sync cancelled. acme/docs → Portal syncs again in 5 min" in flat(page.text)
    run.refresh_from_db()
    assert (run.outcome, run.error) == (Outcome.CANCELLED, "Cancelled by olga.")
    assert queues.job_ids("high") == []
    assert "Check for changes" in section(operator, "scheduled")


def test_cancelling_a_sync_leaves_its_check_for_differences_queued(operator: Client, watches) -> None:
    DriftCheck.objects.create(watch=watches[0], requested_by="anna")
    request_sync(AppRepository.objects.filter(pk=watches[0].pk))
    page = flat(operator.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True).text)
    assert "or sooner if requested. Its check for differences stays queued." in page
    assert DriftCheck.objects.get().is_open
    request_sync(AppRepository.objects.filter(pk=watches[1].pk))
    page = flat(operator.post(f"{PAGE}{watches[1].pk}/cancel/", follow=True).text)
    assert "Sync cancelled. acme/site → Portal syncs again" in page
    assert "check for differences" not in page


def test_cancelling_a_paused_sync_promises_no_sync(operator: Client, watches) -> None:
    resync_single(ME, watches[0])
    AppRepository.objects.filter(pk=watches[0].pk).update(paused_at=timezone.now())
    page = operator.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True)
    assert "Sync cancelled. acme/docs → Portal is paused." in flat(page.text)


def test_cancelling_a_sync_during_its_import_does_not_call_it_paused(operator: Client, watches) -> None:
    resync_single(ME, watches[0])
    AppRepository.objects.update(arriving=True)
    page = operator.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True)
    assert "Sync cancelled. acme/docs → Portal is not fully imported yet." in flat(page.text)


def test_cancelling_a_finished_sync_shows_a_warning(operator: Client, watches) -> None:
    page = operator.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True)
    assert "There is no sync of acme/docs → Portal to cancel." in page.text
    AppRepository.objects.update(ended_at=timezone.now())
    assert "no longer watched" in operator.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True).text
    assert "no longer watched" in operator.post(f"{PAGE}999999/cancel/", follow=True).text


# --- Permissions ---------------------------------------------------------------------------------------------------------


def test_viewer_sees_no_buttons_and_forged_post_is_refused(viewer: Client, watches) -> None:
    resync_many(ME, AppRepository.objects.all())
    page = viewer.get(PAGE).text
    main = page.split('id="queue-now"')[1]
    assert "<button" not in main
    assert "Pause all" not in main
    for url in (f"{PAGE}{watches[0].pk}/cancel/", f"{PAGE}pause/", f"{PAGE}resume/"):
        assert viewer.post(url).status_code == 403
    assert viewer.get(f"{PAGE}pause/").status_code == 403
    assert not SyncPause.objects.exists()
    assert SyncRun.objects.filter(outcome="").count() == 3


def test_control_permission_is_enough_to_view(watches) -> None:
    resync_single(ME, watches[0])
    client = staff("carl", "control_queue")
    page = client.get(PAGE).text
    assert "acme/docs" in page
    assert "/admin/deliveries_app/apprepository/" not in page.split('id="queue-now"')[1]
    assert "Sync cancelled." in client.post(f"{PAGE}{watches[0].pk}/cancel/", follow=True).text


def test_others_are_refused(client: Client, watches) -> None:
    stranger = staff("norbert")
    for url in (PAGE, f"{PAGE}pause/", f"{PAGE}resume/", f"{PAGE}{watches[0].pk}/cancel/"):
        assert client.post(url).status_code == 302
        assert stranger.post(url).status_code == 403
    assert stranger.get(PAGE).status_code == 403
    assert stranger.get(LIVE).status_code == 403
    assert "queue" not in stranger.get("/admin/").text.split('id="content-main"')[1]
    answer = client.get(LIVE, HTTP_HX_REQUEST="true")
    assert (answer.status_code, "Sign in again" in answer.text) == (401, True)


def test_get_and_post_without_csrf_token_change_nothing(operator: Client, watches) -> None:
    resync_single(ME, watches[0])
    assert operator.get(f"{PAGE}{watches[0].pk}/cancel/").status_code == 405
    assert operator.get(f"{PAGE}resume/").status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="olga"))
    for url in (f"{PAGE}{watches[0].pk}/cancel/", f"{PAGE}pause/", f"{PAGE}resume/"):
        assert strict.post(url).status_code == 403
    assert SyncRun.objects.get().outcome == ""


# --- The live part and its cost ------------------------------------------------------------------------------------------


def test_poll_returns_the_page_s_live_part_with_button_ids(operator: Client, watches, settings) -> None:
    lease(watches[0], settings)
    request_sync(AppRepository.objects.filter(pk=watches[1].pk))
    assert f'hx-get="{LIVE}"' in operator.get(PAGE).text
    live = operator.get(LIVE, HTTP_HX_REQUEST="true").text
    assert "<html" not in live
    for name, repository in (("running", "acme/docs"), ("waiting", "acme/site")):
        assert repository in section(operator, name, LIVE)
        assert repository in section(operator, name)
    assert live.count("<button") == live.count('<button type="submit" id="') == 2


def test_query_count_is_constant(operator: Client, db, redis_client: Redis, settings) -> None:
    def fill(count: int) -> None:
        for number in range(count):
            app = make_app(f"App {number}")
            running = make_watch(app, f"running-{count}-{number}")
            lease(running, settings)
            begin(running)
            waiting = make_watch(app, f"waiting-{count}-{number}", next_sync_at=timezone.now())
            queues.enqueue("high", "deliveries_app.jobs.sync_watch", waiting.pk, waiting.job_id)
            make_watch(app, f"due-{count}-{number}", next_sync_at=timezone.now())
            make_watch(app, f"later-{count}-{number}", next_sync_at=timezone.now() + timedelta(hours=1))
            register(redis_client, f"worker-{count}-{number}", pid=number, at=waiting.job_id, state="busy")

    def queries(url: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert operator.get(url).status_code == 200
        return len(captured)

    fill(2)
    operator.get(PAGE)
    few = [queries(PAGE), queries(LIVE)]
    fill(20)
    assert [queries(PAGE), queries(LIVE)] == few
    assert few[1] <= 16
