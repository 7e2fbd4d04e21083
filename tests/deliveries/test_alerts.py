"""Alerts: each problem is reported once when it begins and once when it is over, many problems in one message."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django import conf
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from redis import Redis
from rq import Worker

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.models import Alert, AlertChannel, AlertKind, AlertRound, App, AppRepository, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.monitoring import alerts
from deliveries_app.monitoring.alerts.detect import _docora_problems, _subjects
from deliveries_app.monitoring.alerts.messages import _LISTS, _PAGES, _TEXTS, Message
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.services.app_settings import change_app, change_own_settings
from deliveries_app.sweep import retention
from deliveries_app.sync import outcomes
from deliveries_app.sync.claim import claim
from deliveries_app.webhooks.payloads import timestamp
from docora import disk
from docora.redis import heartbeat
from docora.redis.connection import connection as redis
from repositories_app.models import HostOutage, Repository
from tests.support.alerts import AlertReceivers, alert_receivers, fail_since, next_round, time_passes
from tests.support.receiver import wait_for
from tests.support.staff import make_app, make_watch
from tests.support.valkey import ValkeyServer


@pytest.fixture
def out(db, settings, redis_client) -> Iterator[AlertReceivers]:
    """Alerts are on, and a worker and the sweep are alive."""
    Worker(["high"], name="first", connection=redis_client).register_birth()
    beat()
    settings.PUBLIC_URL = "https://docora.example"
    with alert_receivers(settings) as found:
        yield found


def beat() -> None:
    """Record heartbeats of the sweep and the workers, on a separate connection because RQ changes the timeouts of the
    connection that it is given."""
    heartbeat.beat()
    with Redis.from_url(conf.settings.REDIS_URL) as client:
        for worker in Worker.all(connection=client):
            worker.heartbeat()


@pytest.fixture
def watch(db) -> AppRepository:
    return make_watch(make_app("Portal"), "docs")


def succeed(watch: AppRepository) -> None:
    AppRepository.objects.filter(pk=watch.pk).update(failing_since=None, root_cause="", status=Status.SYNCED)


def test_every_kind_of_alert_is_detected_and_has_texts() -> None:
    assert {*_subjects(timezone.now()), *_docora_problems(None)} == set(AlertKind)
    assert set(_TEXTS) == set(AlertKind)


def test_every_alert_with_a_subject_links_to_its_page_and_to_a_list() -> None:
    """Except git hosts, which have no page. Their alerts link to the overview, which names the hosts that are down."""
    assert set(_subjects(timezone.now())) == {*_PAGES, AlertKind.GIT_HOST_DOWN}
    assert set(_PAGES) <= set(_LISTS)


def test_message_about_the_end_of_several_alerts() -> None:
    now = timezone.now()
    items = [
        Alert(kind=AlertKind.NO_WORKER, since=now, ended_at=now),
        Alert(kind=AlertKind.APP_PAUSED, subject=1, name="Portal", since=now, ended_at=now),
        Alert(kind=AlertKind.APP_PAUSED, subject=2, name="Search", since=now, ended_at=now),
    ]
    message = Message("resolved", [("no_worker", "", 1), ("app_paused", "", 2)], items, now)
    assert message.sentence == "Docora, resolved: workers are running again; 2 apps are no longer paused."
    kinds = [alert.get_kind_display() for alert in items]
    lines = [line.partition(", since")[0] for line in message.body.splitlines() if line.startswith("- ")]
    assert lines == [f"- {kinds[0]}", f"- Portal ({kinds[1]})", f"- Search ({kinds[2]})"]
    assert [item["until"] for item in json.loads(message.json)["items"]] == [timestamp(now)] * 3


# --- Failing watches ---------------------------------------------------------------------------------------------------


def test_alerts_without_channels_cost_nothing(db, watch, django_assert_num_queries) -> None:
    fail_since(watch, 60)
    with django_assert_num_queries(0):
        alerts.run_round()
        alerts.enqueue_if_sweep_is_late()
        assert alerts.undelivered() == []
    assert not Alert.objects.exists()


def test_alert_when_failing_and_when_recovered(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    for _ in range(3):
        next_round()
    assert out.events == [("alert", "failing", 1)]
    assert out.subjects == ["[Docora] alert: acme/docs → Portal is failing (Endpoint: timeout)."]
    succeed(watch)
    for _ in range(3):
        next_round()
    assert out.events[1:] == [("resolved", "failing", 1)]
    assert out.subjects[1:] == ["[Docora] resolved: acme/docs → Portal is no longer failing."]


def test_webhook_payload(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    next_round()
    body = out.posted[0]
    page = f"https://docora.example/admin/deliveries_app/apprepository/{watch.pk}/change/"
    assert body["text"] == f"Docora, alert: acme/docs → Portal is failing (Endpoint: timeout). {page}"
    assert (body["instance"], body["reminder"], body["total"]) == ("https://docora.example", False, 1)
    assert body["counts"] == [{"kind": "failing", "cause": "timeout", "count": 1}]
    (item,) = body["items"]
    assert (item["kind"], item["name"], item["cause"]) == ("failing", "acme/docs → Portal", "timeout")
    assert (item["url"], item["until"]) == (page, None)
    assert body["at"].endswith("Z")
    assert b"\r\nContent-Type: application/json\r\n" in out.heads[0]
    assert item["since"] < body["at"]


def test_email_lists_failing_repositories_with_links(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    AppRepository.objects.update(last_error="what the app said", last_response="what the app said")
    next_round()
    (mail,) = out.smtp.mails
    assert mail.recipients == ["ops@docora.example", "night@docora.example"]
    assert mail.sender == "docora@docora.example"
    assert mail.message["Auto-Submitted"] == "auto-generated"
    assert "- acme/docs → Portal, Endpoint: timeout, since 20" in mail.text
    assert f"https://docora.example/admin/deliveries_app/apprepository/{watch.pk}/change/" in mail.text
    assert "what the app said" not in mail.text + json.dumps(out.posted)


def test_recent_failure_sends_no_alert(out: AlertReceivers, watch, settings) -> None:
    fail_since(watch, 14)
    next_round()
    assert out.events == []
    settings.ALERT_AFTER_SECONDS = 13 * 60
    next_round()
    assert len(out.events) == 1


def test_resync_of_a_failing_watch_is_not_a_recovery(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    next_round()
    resync_single(Actor.command(), watch)
    next_round()
    assert len(out.events) == 1
    fail_since(watch, 16)
    next_round()
    assert len(out.events) == 1
    succeed(watch)
    next_round()
    assert out.events[1:] == [("resolved", "failing", 1)]


def test_alert_ends_when_the_failing_watch_is_removed(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    next_round()
    watch.delete()
    next_round()
    assert out.posted[1]["items"][0]["name"] == "acme/docs → Portal"


def test_alert_ends_when_the_repository_no_longer_has_a_commit(out: AlertReceivers, watch) -> None:
    """No sync succeeds until there is a first commit."""
    fail_since(watch, 16)
    next_round()
    lease = claim(watch.pk)
    assert lease is not None
    outcomes.no_commit_yet(lease)
    next_round()
    assert out.events[1:] == [("resolved", "failing", 1)]


def test_five_thousand_failures_are_one_message(out: AlertReceivers, watch) -> None:
    def fail_more(first: int, last: int) -> None:
        since = timezone.now() - timedelta(hours=1)
        named = [Repository(canonical_url=f"https://x/{n}", owner="o", name=f"r{n:05}") for n in range(first, last)]
        AppRepository.objects.bulk_create(
            AppRepository(
                app=watch.app, repository=repository, failing_since=since,
                root_cause=RootCause.TIMEOUT if number % 5 else RootCause.DNS,
            )
            for number, repository in enumerate(Repository.objects.bulk_create(named))
        )  # fmt: skip

    def queries() -> int:
        time_passes()
        beat()  # on a slow machine, late heartbeats would be further alerts
        with CaptureQueriesContext(connection) as asked:
            alerts.run_round()
        return len(asked)

    queries()  # creates the rows of the round and the channels
    assert queries() <= 17  # every half minute; one looks for mail to the contacts of apps
    fail_more(0, 1)
    queries()
    fail_more(1, 6)
    few = queries()
    fail_more(6, 5006)
    assert queries() == few
    assert few <= 37, (
        "a round takes more statements: one more is right for a new kind of alert about apps or repositories"
    )
    assert out.events == [("alert", "failing", count) for count in (1, 5, 5000)]
    body = out.posted[2]
    assert {count["cause"]: count["count"] for count in body["counts"]} == {"timeout": 4000, "dns": 1000}
    assert len(body["items"]) == 10
    assert len(json.dumps(body)) < 5000
    assert (
        "5,000 watched repositories are failing (4,000 × Endpoint: timeout, 1,000 × Endpoint: DNS lookup failed"
        in body["text"]
    )
    assert body["text"].endswith("https://docora.example/admin/deliveries_app/failedsync/")
    assert "and 4,990 more." in out.smtp.mails[2].text
    AppRepository.objects.update(failing_since=None, root_cause="", status=Status.SYNCED)
    assert queries() <= few
    assert out.events[3:] == [("resolved", "failing", 5006)]


def test_new_failures_are_grouped_into_the_next_message(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    next_round()
    for name in ("site", "blog"):
        fail_since(make_watch(watch.app, name), 16)
        time_passes(seconds=30)
        alerts.run_round()
    assert len(out.events) == 1
    next_round()
    assert out.events[1:] == [("alert", "failing", 2)]


def test_failure_that_ended_before_the_next_message_is_not_reported(out: AlertReceivers, watch) -> None:
    """The receiver got a "resolved" for a problem that it had never heard of."""
    fail_since(watch, 16)
    next_round()
    site = make_watch(watch.app, "site")
    for change in (lambda: fail_since(site, 16), lambda: succeed(site)):
        change()
        time_passes(seconds=30)
        alerts.run_round()
    next_round()
    assert out.events == [("alert", "failing", 1)]
    succeed(watch)
    next_round()
    assert out.events[1:] == [("resolved", "failing", 1)]
    assert len(out.subjects) == 2


# --- The other kinds ---------------------------------------------------------------------------------------------------


def test_alert_for_an_app_paused_by_410_only(out: AlertReceivers, watch) -> None:
    App.objects.filter(pk=make_app("By hand").pk).update(paused=True)
    AppRepository.objects.filter(pk=watch.pk).update(next_sync_at=timezone.now() - timedelta(seconds=1))
    lease = claim(watch.pk)
    assert lease is not None
    outcomes.endpoint_gone(lease)
    next_round()
    assert out.events == [("alert", "app_paused", 1)]
    assert "alert: Portal returned HTTP 410 and was paused." in out.posted[0]["text"]
    App.objects.update(paused=False, paused_reason="")
    next_round()
    assert out.events[1:] == [("resolved", "app_paused", 1)]
    change_own_settings(Actor.command(), watch.app, paused=True)
    next_round()
    assert len(out.events) == 2


def test_alert_stays_open_while_an_administrator_takes_over_the_pause(out: AlertReceivers, watch) -> None:
    App.objects.update(paused=True, paused_reason="The app returned HTTP 410.")
    next_round()
    app = App.objects.get()
    change_app(Actor.command(), app, ["paused"])
    assert (app.paused, app.paused_reason) == (True, "")
    next_round()
    assert out.events == [("alert", "app_paused", 1)]
    App.objects.update(paused=False)
    next_round()
    assert out.events[1:] == [("resolved", "app_paused", 1)]


def test_alert_for_a_paused_app_ends_when_the_app_is_removed(out: AlertReceivers, watch) -> None:
    App.objects.update(paused=True, paused_reason="The app returned HTTP 410.")
    next_round()
    App.objects.update(ended_at=timezone.now())
    next_round()
    assert out.events == [("alert", "app_paused", 1), ("resolved", "app_paused", 1)]


def test_alert_for_an_endpoint_that_is_down(out: AlertReceivers, watch) -> None:
    App.objects.filter(pk=watch.app_id).update(down_count=3)
    fail_since(watch, 5)
    next_round()
    assert out.events == []
    fail_since(watch, 16)
    next_round()
    assert out.events == [("alert", "several", 2)]
    assert "the endpoint of Portal is down; acme/docs → Portal is failing" in out.posted[0]["text"]
    assert [item["kind"] for item in out.posted[0]["items"]] == ["endpoint_down", "failing"]


def test_mail_says_what_is_wrong_with_each_item(out: AlertReceivers, watch) -> None:
    """An app that was down and then returned 410 was listed twice, in equal lines."""
    App.objects.filter(pk=watch.app_id).update(down_count=3, paused=True, paused_reason="The app returned HTTP 410.")
    fail_since(watch, 16)
    next_round()
    lines = [line.partition(", ")[0] for line in out.smtp.mails[0].text.splitlines() if line.startswith("- ")]
    assert lines == [
        "- Portal (endpoint is down)",
        "- Portal (app is paused)",
        "- acme/docs → Portal (watched repository is failing)",
    ]


def test_alert_for_an_endpoint_ends_with_its_last_repository(out: AlertReceivers, watch) -> None:
    """No request can show that the endpoint is up again."""
    App.objects.filter(pk=watch.app_id).update(down_count=3)
    fail_since(watch, 16)
    next_round()
    unwatch_repository(Actor.command(), watch)
    next_round()
    assert out.events[1:] == [("resolved", "several", 2)]
    assert "resolved: the endpoint of Portal is no longer down; acme/docs" in out.posted[1]["text"]


def test_open_circuit_is_one_alert_until_it_closes(out: AlertReceivers, watch) -> None:
    rows = Repository.objects.filter(pk=watch.repository_id)
    rows.update(circuit_open_until=timezone.now() + timedelta(minutes=30))
    next_round()
    rows.update(circuit_open_until=timezone.now() - timedelta(minutes=1))
    next_round()
    assert out.events == [("alert", "circuit_open", 1)]
    rows.update(circuit_open_until=None)
    next_round()
    assert out.events[1:] == [("resolved", "circuit_open", 1)]


def test_git_host_that_is_down_for_a_quarter_of_an_hour_is_one_alert(out: AlertReceivers, watch) -> None:
    """Its repositories don't fail. Their circuits open only after several rescans, and have no alerts of their own."""
    now = timezone.now()
    Repository.objects.update(
        canonical_url="https://git.example:8443/acme/docs", circuit_open_until=now + timedelta(hours=1)
    )
    outage = HostOutage.objects.create(
        host="https://git.example:8443/", since=now - timedelta(minutes=14), retry_at=now, error="Connection refused."
    )
    next_round()
    assert out.events == []
    HostOutage.objects.update(since=now - timedelta(minutes=16))
    next_round()
    assert out.subjects == ["[Docora] alert: the git host git.example:8443 is down."]
    (item,) = out.posted[0]["items"]
    assert (item["kind"], item["name"], item["cause"]) == ("git_host_down", "git.example:8443", "")
    assert out.posted[0]["items"][0]["url"] == "https://docora.example/admin/"
    outage.delete()
    next_round()
    assert out.events == [("alert", "git_host_down", 1), ("resolved", "git_host_down", 1), ("alert", "circuit_open", 1)]


def test_circuit_that_opened_and_closed_twice_is_resolved_once(out: AlertReceivers, watch) -> None:
    """The message named two repositories, and listed the same one twice."""
    rows = Repository.objects.filter(pk=watch.repository_id)
    for until in (timezone.now() + timedelta(minutes=30), None) * 2:
        rows.update(circuit_open_until=until)
        time_passes(seconds=30)
        alerts.run_round()
    next_round()
    assert out.subjects[-1] == "[Docora] resolved: the circuit of acme/docs is no longer open."
    assert len(out.posted[-1]["items"]) == out.posted[-1]["total"] == 1
    last = Alert.objects.latest("pk")
    assert out.posted[-1]["items"][0]["until"] == timestamp(last.ended_at)


def test_alert_after_a_minute_without_workers(out: AlertReceivers, redis_client) -> None:
    redis_client.flushall()
    heartbeat.beat()
    alerts.run_round()
    time_passes(seconds=30)
    alerts.run_round()
    assert Alert.objects.get().kind == AlertKind.NO_WORKER
    Worker(["high"], name="late", connection=redis_client).register_birth()
    next_round()
    assert out.events == []
    assert not Alert.objects.exists()
    redis_client.flushall()
    heartbeat.beat()
    next_round()
    next_round()
    assert out.events == [("alert", "no_worker", 1)]


def test_alert_that_began_while_the_clock_was_ahead(out: AlertReceivers, redis_client) -> None:
    redis_client.flushall()
    heartbeat.beat()
    alerts.run_round()
    Alert.objects.update(since=timezone.now() + timedelta(days=365))
    next_round()
    assert out.events == [("alert", "no_worker", 1)]
    assert Alert.objects.get().since <= timezone.now()


def test_worker_that_is_back_ends_no_other_alert(out: AlertReceivers, watch, redis_client) -> None:
    App.objects.update(paused=True, paused_reason="The app returned HTTP 410.")
    redis_client.flushall()
    heartbeat.beat()
    for _ in range(3):
        next_round()
    Worker(["high"], name="late", connection=redis_client).register_birth()
    next_round()
    assert out.events == [("alert", "app_paused", 1), ("alert", "no_worker", 1), ("resolved", "no_worker", 1)]


def test_unreachable_redis_is_one_alert_and_no_worker_alert(out: AlertReceivers, valkey_server: ValkeyServer) -> None:
    valkey_server.stop()
    alerts.enqueue_if_sweep_is_late()
    for _ in range(3):
        next_round()
    assert out.events == [("alert", "redis_down", 1)]


def test_redis_that_is_lost_again_before_the_heartbeats_are_back(
    out: AlertReceivers, redis_client, valkey_server: ValkeyServer
) -> None:
    """For a moment after each start of Redis or Docora, heartbeats are missing. A message said that neither a worker nor the sweep
    was running, although both were."""
    redis_client.flushall()
    alerts.run_round()
    assert set(Alert.objects.values_list("kind", flat=True)) == {AlertKind.NO_WORKER, AlertKind.SWEEP_LATE}
    with valkey_server.refusing_writes():
        for _ in range(3):
            next_round()
    assert out.events == [("alert", "redis_down", 1)]
    for _ in range(2):
        next_round()
    assert out.events[1:] == [("resolved", "redis_down", 1), ("alert", "several", 2)]


def test_redis_that_rejects_writes_is_one_alert(out: AlertReceivers, redis_client, valkey_server: ValkeyServer) -> None:
    redis_client.flushall()  # heartbeats that could not be renewed have expired
    with valkey_server.refusing_writes():
        for _ in range(3):
            next_round()
    assert out.events == [("alert", "redis_down", 1)]


def test_almost_full_disk_is_one_alert(out: AlertReceivers, settings, tmp_path, monkeypatch) -> None:
    """The disk filled up without an alert, until syncs had been failing for a quarter of an hour."""
    with monkeypatch.context() as patched:
        patched.setattr(disk, "MIN_FREE_BYTES", 10**18)
        patched.setattr(disk, "MIN_FREE_SHARE", 1.0)
        for _ in range(3):
            next_round()
    assert out.events == [("alert", "disk", 1)]
    assert out.posted[0]["text"] == (
        "Docora, alert: a disk is almost full or not writable, so syncs may fail. https://docora.example/admin/"
    )
    next_round()
    assert out.events[1:] == [("resolved", "disk", 1)]
    settings.REPOS_DIR = tmp_path / "file"
    settings.REPOS_DIR.write_text("")
    for _ in range(3):
        next_round()
    assert out.events[2:] == [("alert", "disk", 1)]


def test_disk_of_another_machine_is_an_alert(out: AlertReceivers, redis_client, valkey_server: ValkeyServer) -> None:
    """Only the machine that looked for problems was checked. While Redis is down, the others are unknown."""
    worker = Worker(["high"], name="elsewhere", connection=redis_client)
    worker.register_birth()
    redis_client.hset(worker.key, mapping={"hostname": "worker-2", "disk_problem": "REPOS_DIR is not writable"})
    for _ in range(3):
        next_round()
    assert out.events == [("alert", "disk", 1)]
    with valkey_server.refusing_writes():
        next_round()
    assert Alert.objects.get(kind=AlertKind.DISK).ended_at is None
    redis_client.hset(worker.key, "disk_problem", "")
    next_round()
    assert out.events[1:] == [("resolved", "disk", 1)]


def test_slow_statements_make_no_heartbeat_late(out: AlertReceivers, monkeypatch) -> None:
    now = timezone.now

    def slow(execute, *arguments):
        monkeypatch.setattr(heartbeat.timezone, "now", lambda: now() + timedelta(seconds=60))
        return execute(*arguments)

    with connection.execute_wrapper(slow):
        alerts.run_round()
    assert not Alert.objects.exists()


@pytest.mark.parametrize("channels", ["webhook", "mail server", "none"])
def test_worker_takes_over_if_there_is_something_to_send(out: AlertReceivers, settings, channels: str) -> None:
    settings.ALERT_EMAILS = []
    if channels != "webhook":
        settings.ALERT_WEBHOOK_URL = ""
    if channels != "mail server":  # which sends mails to the contacts of apps, even without alerts
        settings.MAILERS = {}
    alerts.enqueue_if_sweep_is_late()
    assert not redis().exists("rq:queue:high"), "the sweep is running"
    redis().set("docora:heartbeat:sweep", timezone.now().timestamp() - 600)
    alerts.enqueue_if_sweep_is_late()
    assert redis().exists("rq:queue:high") == (channels != "none")


@pytest.mark.django_db(transaction=True)
def test_alerts_are_sent_in_the_background(out: AlertReceivers, watch, settings, monkeypatch, caplog) -> None:
    """An unexpected error does not end the thread."""
    monkeypatch.setattr(alerts, "EVERY_SECONDS", 0.01)
    settings.ALERT_EMAILS, settings.MAILERS = [], {}
    AlertRound.objects.all().delete()
    rounds = iter([ZeroDivisionError(), DatabaseError("gone")])

    def run_round() -> None:
        for error in rounds:
            raise error
        run()

    run = alerts.run_round
    monkeypatch.setattr(alerts, "run_round", run_round)
    fail_since(watch, 16)
    with alerts.run_in_background():
        wait_for(lambda: out.events == [("alert", "failing", 1)])
        [thread] = [thread for thread in threading.enumerate() if thread.name == "alerts"]
    assert not thread.is_alive()
    logged = [record.message for record in caplog.records if record.threadName == "alerts"]
    assert logged[:2] == ["alerts_failed_unexpectedly", "alerts_without_database"]


def test_worker_alerts_about_a_late_sweep(out: AlertReceivers) -> None:
    redis().set("docora:heartbeat:sweep", timezone.now().timestamp() - 600)
    alerts.enqueue_if_sweep_is_late()
    alerts.enqueue_if_sweep_is_late()
    assert redis().lrange("rq:queue:high", 0, -1) == [b"alerts"]
    for _ in range(2):
        time_passes()
        jobs.send_alerts("late")
    assert out.events == [("alert", "sweep_late", 1)]
    heartbeat.beat()
    alerts.enqueue_if_sweep_is_late()
    assert redis().llen("rq:queue:high") == 1
    next_round()
    assert out.events[1:] == [("resolved", "sweep_late", 1)]


# --- Reminders, pruning and new channels -------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "reminders"), [(86400, 1), (0, 0)])
def test_ongoing_alert_is_repeated_once_after_a_day(
    out: AlertReceivers, watch, settings, every: int, reminders: int
) -> None:
    settings.ALERT_REPEAT_SECONDS = every
    fail_since(watch, 16)
    next_round()
    time_passes(hours=25)
    for _ in range(3):
        next_round()
    assert [body["reminder"] for body in out.posted] == [False] + [True] * reminders
    assert all("still: acme/docs → Portal" in body["text"] for body in out.posted[1:])


def test_reminder_names_the_current_cause(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    next_round()
    AppRepository.objects.update(root_cause=RootCause.DNS)
    time_passes(hours=25)
    next_round()
    assert "Portal is failing (Endpoint: DNS lookup failed)" in out.posted[1]["text"]


def test_ended_alerts_are_pruned_with_the_runs(out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    next_round()
    succeed(watch)
    next_round()
    assert retention.prune()["alerts"] == 0
    Alert.objects.filter(kind=AlertKind.FAILING).update(ended_at=timezone.now() - timedelta(days=91))
    assert retention.prune(dry_run=True)["alerts"] == retention.prune()["alerts"] == 1


def test_new_channel_gets_ongoing_alerts_only(out: AlertReceivers, watch, settings) -> None:
    settings.ALERT_EMAILS, emails = [], settings.ALERT_EMAILS
    site = make_watch(watch.app, "site")
    for one in (watch, site):
        fail_since(one, 16)
    next_round()
    succeed(site)
    next_round()
    settings.ALERT_EMAILS = emails
    next_round()
    assert out.subjects == ["[Docora] alert: acme/docs → Portal is failing (Endpoint: timeout)."]
    assert AlertChannel.objects.count() == 2
