"""The queue page: what runs, waits and is scheduled, who works on it, and what an operator may press."""

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
from deliveries_app.models import App, AppRepository, Outcome, Status, SyncPause, SyncRun
from deliveries_app.progress import runs
from deliveries_app.reports import queue as queue_report
from deliveries_app.services import request_sync, resync_many, resync_single
from deliveries_app.sweep.cleanup import CLEAN_UP_JOB
from docora.db.clock import from_now
from docora.redis import queues
from tests.support.staff import make_app, make_watch, staff
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
    """As if a worker were at it; its lease lasts so many seconds more."""
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
    """A worker as rq registers one."""
    moment = utcformat(timezone.now() - timedelta(seconds=seconds_ago))
    facts = {"hostname": "box", "pid": pid, "state": state, "queues": "high,default,low", "birth": moment}
    redis.sadd("rq:workers", f"rq:worker:{name}")
    redis.hset(f"rq:worker:{name}", mapping=facts | {"last_heartbeat": moment})
    if at:
        redis.sadd(f"rq:worker:{name}:executions", f"{at}:1")


def flat(text: str) -> str:
    return " ".join(text.split())


def section(client: Client, name: str, url: str = PAGE) -> str:
    """What stands below the heading of this id, in one line."""
    page = client.get(url)
    assert page.status_code == 200
    return flat(page.text.split(f'<h2 id="{name}">')[1].split("<h2 ")[0])


# --- What it shows -------------------------------------------------------------------------------------------------------


def test_when_nothing_goes_on_it_says_so(operator: Client) -> None:
    page = operator.get(PAGE).text
    for words in ("Nothing is being synced now.", "Nothing waits.", "Nothing is to be tried again later."):
        assert words in page
    assert "No worker is at work" in page
    assert "Start manage.py up" in page


def test_it_is_found_in_the_list_of_models_under_its_name(operator: Client) -> None:
    assert f'href="{PAGE}"' in operator.get("/admin/").text
    assert ">Queue</a>" in operator.get("/admin/").text


def test_what_runs_is_shown_with_its_request_its_bar_and_its_worker(
    operator: Client, watches, redis_client: Redis, settings
) -> None:
    lease(watches[0], settings)
    begin(watches[0])
    queues.enqueue("high", "deliveries_app.jobs.sync_watch", watches[0].pk, watches[0].job_id)
    redis_client.delete("rq:queue:high")  # a worker has taken it
    register(redis_client, WORKER, at=watches[0].job_id, state="busy")
    shown = section(operator, "running")
    assert "acme/docs" in shown
    assert "re-sync, anna" in shown
    assert 'value="40"' in shown
    assert "40 / 100" in shown
    assert WORKER in shown
    assert "gone" not in shown
    workers = section(operator, "workers")
    assert "acme/docs → Portal" in workers
    assert "busy" in workers


def test_one_that_has_nothing_to_send_yet_reads_and_one_that_was_stopped_is_leaving(
    operator: Client, watches, settings
) -> None:
    lease(watches[0], settings)
    assert "reads the repository" in section(operator, "running")
    assert "Stop" in section(operator, "running")
    operator.post(f"{PAGE}{watches[0].pk}/stop/")
    shown = section(operator, "running")
    assert "what is under way settles" in shown
    assert "<button" not in shown


def test_what_waits_is_shown_in_the_order_of_its_queues(operator: Client, watches) -> None:
    request_sync(AppRepository.objects.filter(pk__in=[watch.pk for watch in watches]))
    for queue, watch in (("default", watches[0]), ("high", watches[1])):
        queues.enqueue(queue, "deliveries_app.jobs.sync_watch", watch.pk, watch.job_id)
    queues.enqueue("low", CLEAN_UP_JOB, "ended", "clean-up")
    shown = section(operator, "waiting")
    names = ["acme/site", "acme/docs", "none yet", "Clean-up"]
    assert sorted(names, key=shown.index) == names
    assert "Cancel" in shown
    view = queue_report.look()
    assert view.queue is not None
    assert view.queue.lengths == {"high": 1, "default": 1, "low": 1}
    assert [(line.watch.pk, line.queue) for line in view.waiting] == [
        (watches[1].pk, "high"),
        (watches[0].pk, "default"),
        (watches[2].pk, ""),
    ]
    assert (view.counts.due, view.counts.held, view.unqueued) == (3, 0, 1)


def test_what_is_held_back_says_by_what(operator: Client, watches) -> None:
    request_sync(AppRepository.objects.all())
    App.objects.filter(pk=watches[0].app_id).update(paused=True)
    App.objects.filter(pk=watches[2].app_id).update(cooldown_until=timezone.now() + timedelta(seconds=90))
    shown = section(operator, "waiting")
    assert "The app is paused." in shown
    assert "The app&#x27;s endpoint rests for 1 min" in shown
    view = queue_report.look()
    assert (view.counts.due, view.counts.held, view.unqueued) == (0, 3, 0)
    App.objects.update(paused=False, cooldown_until=None)
    AppRepository.objects.filter(pk=watches[0].pk).update(slots_requested_at=timezone.now())
    assert "All slots of the app are taken." in section(operator, "waiting")
    SyncPause.objects.create(paused_by="anna")
    assert section(operator, "waiting").count("All syncing is paused.") == 3
    assert (queue_report.look().counts.held, queue_report.look().unqueued) == (3, 0)


def test_a_job_whose_repository_is_synced_already_is_only_counted(operator: Client, watches) -> None:
    queues.enqueue("high", "deliveries_app.jobs.sync_watch", watches[0].pk, watches[0].job_id)
    shown = section(operator, "waiting")
    assert "Nothing waits." in shown
    assert "1 further job has nothing to do any more" in shown


def test_what_is_scheduled_is_shown_with_its_time_and_its_cause_the_soonest_first(operator: Client, watches) -> None:
    failing = {"failing_since": Now(), "root_cause": "http_5xx", "last_error": "502"}
    rows = AppRepository.objects.filter
    rows(pk=watches[0].pk).update(status="failed", next_sync_at=from_now(200), **failing)
    rows(pk=watches[1].pk).update(status="pending_snapshot", retry_count=2, next_sync_at=from_now(40), **failing)
    rows(pk=watches[2].pk).update(next_sync_at=from_now(3000))
    shown = section(operator, "scheduled")
    order = ["acme/site", "Attempt 3 of 5.", "Given up until the rescan.", "Search", "Rests until the rescan."]
    assert sorted(order, key=shown.index) == order
    assert shown.count("Endpoint: 5xx") == 2
    assert f'/admin/deliveries_app/apprepository/{watches[1].pk}/change/"' in shown
    assert queue_report.look().counts.delayed == 3


def test_each_list_is_bounded_and_says_how_many_more_there_are(operator: Client, db, monkeypatch, settings) -> None:
    monkeypatch.setattr(queue_report, "SHOWN", 2)
    monkeypatch.setattr(queue_report, "SCHEDULED_SHOWN", 2)
    app = make_app("Portal")
    for number in range(5):
        lease(make_watch(app, f"running-{number}"), settings)
        make_watch(app, f"waiting-{number}", next_sync_at=timezone.now())
        make_watch(app, f"later-{number}", next_sync_at=timezone.now() + timedelta(hours=1))
    for name in ("running", "waiting", "scheduled"):
        assert "and 3 more" in section(operator, name)


# --- When something is gone ----------------------------------------------------------------------------------------------


def test_a_lease_that_nobody_extends_says_when_the_repository_is_free_again(
    operator: Client, watches, redis_client: Redis, settings
) -> None:
    settings.LEASE_SECONDS = 3600.0
    lease(watches[0], settings, left=640)
    assert "This worker is gone: the repository is free again in 10 min" in section(operator, "running")
    register(redis_client, WORKER)
    shown = section(operator, "running")
    assert "Not heard from for 49 min" in shown
    assert "If it is gone, the repository is free again in 10 min" in shown


def test_a_lease_that_is_extended_is_of_a_worker_that_lives_whoever_knows_of_it(
    operator: Client, watches, settings
) -> None:
    lease(watches[0], settings, owner="elsewhere:1")
    assert "gone" not in section(operator, "running")


def test_a_worker_without_a_sign_of_life_is_gone_and_what_it_holds_is_said(
    operator: Client, watches, redis_client: Redis, settings
) -> None:
    settings.LEASE_SECONDS = 3600.0
    register(redis_client, WORKER, seconds_ago=70, state="busy")
    register(redis_client, "box:7:another", pid=7)  # in another container with the same host name
    assert "It holds no repository any more." in section(operator, "workers")
    lease(watches[0], settings, left=640)
    shown = section(operator, "workers")
    assert "Killed, or cut off from Redis. acme/docs → Portal is free again in 10 min" in shown
    assert shown.count("gone") == 1
    assert queue_report.look().workers_alive == 1
    assert "No worker is at work" not in operator.get(PAGE).text


def test_without_redis_it_says_so_and_shows_what_the_rows_know(
    operator: Client, watches, settings, valkey_server: ValkeyServer
) -> None:
    lease(watches[0], settings)
    begin(watches[0])
    request_sync(AppRepository.objects.filter(pk=watches[1].pk))
    AppRepository.objects.filter(pk=watches[2].pk).update(next_sync_at=from_now(40))
    valkey_server.stop()
    page = operator.get(PAGE)
    assert page.status_code == 200
    assert "Redis does not answer" in page.text
    assert "40 / 100" in section(operator, "running")
    assert "gone" not in section(operator, "running")
    assert "once Redis is back" in section(operator, "waiting")
    assert "Search" in section(operator, "scheduled")
    assert "Not known without Redis." in section(operator, "workers")
    operator.post(f"{PAGE}{watches[1].pk}/stop/")
    assert "Nothing waits." in section(operator, "waiting")


# --- Stop ----------------------------------------------------------------------------------------------------------------


def test_a_resync_that_waits_is_cancelled_and_the_toast_says_what_that_means(operator: Client, watches) -> None:
    run = resync_single(ME, watches[0]).run
    page = operator.post(f"{PAGE}{watches[0].pk}/stop/", follow=True)
    assert page.redirect_chain == [(PAGE, 302)]
    assert "Stopped: acme/docs → Portal rests until the next rescan, in 5 min" in flat(page.text)
    run.refresh_from_db()
    assert (run.outcome, run.error) == (Outcome.CANCELLED, "Stopped by olga.")
    assert queues.waiting("high") == 0
    assert "Rests until the rescan." in section(operator, "scheduled")


def test_a_stop_that_comes_too_late_says_so(operator: Client, watches) -> None:
    page = operator.post(f"{PAGE}{watches[0].pk}/stop/", follow=True)
    assert "Nothing was going on about acme/docs → Portal any more." in page.text
    AppRepository.objects.update(ended_at=timezone.now())
    assert "not watched any more" in operator.post(f"{PAGE}{watches[0].pk}/stop/", follow=True).text
    assert "not watched any more" in operator.post(f"{PAGE}999999/stop/", follow=True).text


# --- Who may -------------------------------------------------------------------------------------------------------------


def test_who_only_sees_is_offered_nothing_and_a_forged_post_is_refused(viewer: Client, watches) -> None:
    resync_many(ME, AppRepository.objects.all())
    page = viewer.get(PAGE).text
    main = page.split('id="queue-now"')[1]
    assert "<button" not in main
    assert "Pause all" not in main
    for url in (f"{PAGE}{watches[0].pk}/stop/", f"{PAGE}pause/", f"{PAGE}resume/"):
        assert viewer.post(url).status_code == 403
    assert viewer.get(f"{PAGE}pause/").status_code == 403
    assert not SyncPause.objects.exists()
    assert SyncRun.objects.filter(outcome="").count() == 3


def test_who_may_control_may_also_see_and_needs_nothing_else(watches) -> None:
    resync_single(ME, watches[0])
    client = staff("carl", "control_queue")
    page = client.get(PAGE).text
    assert "acme/docs" in page
    assert "/admin/deliveries_app/apprepository/" not in page.split('id="queue-now"')[1]
    assert "Stopped" in client.post(f"{PAGE}{watches[0].pk}/stop/", follow=True).text


def test_nobody_else_gets_anywhere_near_it(client: Client, watches) -> None:
    stranger = staff("norbert")
    for url in (PAGE, f"{PAGE}pause/", f"{PAGE}resume/", f"{PAGE}{watches[0].pk}/stop/"):
        assert client.post(url).status_code == 302
        assert stranger.post(url).status_code == 403
    assert stranger.get(PAGE).status_code == 403
    assert stranger.get(LIVE).status_code == 403
    assert "queue" not in stranger.get("/admin/").text.split('id="content-main"')[1]
    answer = client.get(LIVE, HTTP_HX_REQUEST="true")
    assert (answer.status_code, "Sign in again" in answer.text) == (401, True)


def test_looking_and_posting_without_a_token_change_nothing(operator: Client, watches) -> None:
    resync_single(ME, watches[0])
    assert operator.get(f"{PAGE}{watches[0].pk}/stop/").status_code == 405
    assert operator.get(f"{PAGE}resume/").status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="olga"))
    for url in (f"{PAGE}{watches[0].pk}/stop/", f"{PAGE}pause/", f"{PAGE}resume/"):
        assert strict.post(url).status_code == 403
    assert SyncRun.objects.get().outcome == ""


# --- The live part and its cost ------------------------------------------------------------------------------------------


def test_the_live_part_is_the_page_s_own_and_every_button_in_it_has_an_id(operator: Client, watches, settings) -> None:
    lease(watches[0], settings)
    request_sync(AppRepository.objects.filter(pk=watches[1].pk))
    assert f'hx-get="{LIVE}"' in operator.get(PAGE).text
    live = operator.get(LIVE, HTTP_HX_REQUEST="true").text
    assert "<html" not in live
    for name, repository in (("running", "acme/docs"), ("waiting", "acme/site")):
        assert repository in section(operator, name, LIVE)
        assert repository in section(operator, name)
    assert live.count("<button") == live.count('<button type="submit" id="') == 2


def test_it_takes_the_same_queries_for_many_rows(operator: Client, db, redis_client: Redis, settings) -> None:
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
