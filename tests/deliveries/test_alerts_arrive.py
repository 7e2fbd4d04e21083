"""Sending alerts: each arrives once, or later if a channel is down. Sending delays nothing else and shows no secrets."""

import base64
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db.models import F
from django.test import RequestFactory
from django.utils import timezone
from django.views.debug import get_exception_reporter_class
from redis import Redis
from rq import Worker

from deliveries_app.models import Alert, AlertChannel, AlertKind, AppRepository, Status
from deliveries_app.monitoring import alerts
from deliveries_app.monitoring.alerts.channels import send_mail
from deliveries_app.monitoring.instance_checks import check_alerts
from docora.redis import heartbeat
from tests.docora.http_server import saying
from tests.support.alerts import (
    HOOK_SECRET,
    PASSWORD,
    AlertReceivers,
    alert_receivers,
    fail_since,
    next_round,
    time_passes,
)
from tests.support.doctor import infos, problems
from tests.support.processes import Daemons, in_threads
from tests.support.receiver import wait_for
from tests.support.staff import VIEWS, make_app, make_watch, staff


@pytest.fixture
def out(db, settings, redis_client: Redis) -> Iterator[AlertReceivers]:
    """Alerts are on, and a worker and the sweep are alive."""
    Worker(["high"], name="first", connection=redis_client).register_birth()
    heartbeat.beat()
    with alert_receivers(settings) as found:
        yield found


@pytest.fixture
def watch(db) -> AppRepository:
    return make_watch(make_app("Portal"), "docs")


def succeed(watch: AppRepository) -> None:
    AppRepository.objects.filter(pk=watch.pk).update(failing_since=None, root_cause="", status=Status.SYNCED)


@pytest.fixture
def daemons(tmp_path: Path, instance_environment: dict[str, str], out: AlertReceivers) -> Iterator[Daemons]:
    """Processes that send to this test's webhook and mail server."""
    url = f"smtp://docora:{PASSWORD.replace('$', '%24')}@127.0.0.1:{out.smtp.port}"
    more = {
        "ALERT_WEBHOOK_URL": out.hook_url, "EMAIL_URL": url, "ALERT_EMAILS": "ops@docora.example",
        "DEFAULT_FROM_EMAIL": "docora@docora.example", "LOG_LEVEL": "debug",
    }  # fmt: skip
    daemons = Daemons(tmp_path, instance_environment | more)
    yield daemons
    daemons.close()


def channel(name: str) -> AlertChannel:
    return AlertChannel.objects.get(name=name)


# --- Channels that are down --------------------------------------------------------------------------------------------


def test_alerts_during_a_mail_outage_arrive_in_one_message(out: AlertReceivers, watch) -> None:
    out.smtp.stop()
    fail_since(watch, 16)
    next_round()
    assert (out.events, out.subjects) == ([("alert", "failing", 1)], [])
    site = make_watch(watch.app, "site")
    fail_since(site, 16)
    next_round()
    out.smtp.start()
    next_round()
    assert out.events == [("alert", "failing", 1)] * 2
    assert out.subjects == ["[Docora] alert: 2 watched repositories are failing (2 × Endpoint: timeout)."]
    assert channel("email").attempts == 0


def test_alert_that_ended_before_it_was_sent(out: AlertReceivers, watch) -> None:
    out.webhook_answer = saying("503 Service Unavailable")
    fail_since(watch, 16)
    next_round()
    AppRepository.objects.update(failing_since=None, root_cause="", status=Status.SYNCED)
    next_round()
    out.webhook_answer = saying()
    next_round()
    assert out.events == [("alert", "failing", 1), ("resolved", "failing", 1), ("resolved", "failing", 1)]
    next_round()
    assert len(out.events) == 3


def test_end_of_a_problem_says_that_its_alert_was_not_delivered(out: AlertReceivers, watch) -> None:
    """The receiver got only "resolved: Redis works again", hours later, about something that it had never heard of."""
    site = make_watch(watch.app, "site")
    fail_since(watch, 16)
    next_round()
    out.webhook_answer = saying("503 Service Unavailable")
    fail_since(site, 16)
    next_round()
    succeed(site)
    next_round()
    out.webhook_answer = saying()
    next_round()
    alert = Alert.objects.get(subject=site.pk)
    begin, end = (f"{moment:%Y-%m-%d %H:%M}" for moment in (alert.since, alert.ended_at) if moment)
    assert (
        "resolved: acme/site → Portal is no longer failing. "
        f"The problem lasted from {begin} until {end} UTC, but the alert about it couldn't be delivered. "
    ) in out.posted[-1]["text"]
    assert out.subjects[-1] == "[Docora] resolved: acme/site → Portal is no longer failing.", "this mail was delivered"


def test_end_of_several_problems_of_which_some_were_not_reported(out: AlertReceivers, watch) -> None:
    site, blog = make_watch(watch.app, "site"), make_watch(watch.app, "blog")
    fail_since(watch, 16)
    next_round()
    out.smtp.stop()
    for late in (site, blog):
        fail_since(late, 16)
    next_round()
    for each in (site, blog):
        succeed(each)
    next_round()
    succeed(watch)
    out.smtp.start()
    next_round()
    first_line = out.smtp.mails[-1].text.splitlines()[0]
    assert first_line.endswith(
        "resolved: 3 watched repositories are no longer failing. The alerts about 2 of these problems couldn't be delivered."
    )
    for each in (site, blog):
        fail_since(each, 16)
    out.smtp.stop()
    next_round()
    for each in (site, blog):
        succeed(each)
    out.smtp.start()
    next_round()
    first_line = out.smtp.mails[-1].text.splitlines()[0]
    assert first_line.endswith("are no longer failing. The alerts about these problems couldn't be delivered.")


def test_failed_channel_backs_off_up_to_an_hour(out: AlertReceivers, watch) -> None:
    out.webhook_answer = saying("302 Found", b"", "Location: /elsewhere")
    fail_since(watch, 16)
    waits = []
    for _ in range(9):
        AlertChannel.objects.update(due_at=F("created_at"))
        alerts.run_round()
        alerts.run_round()  # too early for another attempt
        waits.append(round((channel("webhook").due_at - timezone.now()).total_seconds(), -1))
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert len(out.events) == 9


def test_overview_names_a_failing_channel_until_it_works(out: AlertReceivers, watch) -> None:
    viewer = staff("vera", *(f"view_{model}" for model in VIEWS))
    out.smtp.answers["RCPT"] = "550 no such <b>mailbox</b>"
    fail_since(watch, 16)
    next_round()
    page = viewer.get("/admin/").text
    assert "Email alerts can't be delivered." in page
    assert "no address in ALERT_EMAILS was accepted" in page
    assert "Webhook alerts" not in page
    out.smtp.answers.clear()
    next_round()
    assert "can't be delivered" not in viewer.get("/admin/").text


def test_doctor_names_a_failing_channel_until_it_works(out: AlertReceivers, watch, settings) -> None:
    assert infos(check_alerts()).strip() == "No alert is waiting to be delivered."
    out.webhook_answer = saying("404 Not Found")
    fail_since(watch, 16)
    next_round()
    assert problems(check_alerts()).startswith(
        "Webhook alerts can't be delivered. ALERT_WEBHOOK_URL returned HTTP 404. Correct the setting or the server."
    )
    out.webhook_answer = saying()
    next_round()
    assert not problems(check_alerts())
    settings.ALERT_WEBHOOK_URL, settings.ALERT_EMAILS = "", []
    assert infos(check_alerts()).startswith("Alerts are off")


# --- Who sends ---------------------------------------------------------------------------------------------------------


def test_concurrent_sweeps_send_one_alert(transactional_db, out: AlertReceivers, watch) -> None:
    fail_since(watch, 16)
    in_threads(*[alerts.run_round] * 4)
    assert out.events == [("alert", "failing", 1)]
    assert len(out.subjects) == 1


def test_restart_does_not_repeat_alerts(transactional_db, out, watch, daemons) -> None:
    fail_since(watch, 16)
    for _ in range(2):
        assert daemons.start("sweep", "--once").process.wait(60) == 0, daemons.logs()
        time_passes()
    assert out.events == [("alert", "failing", 1)]
    assert len(out.subjects) == 1


@pytest.mark.early(3)
def test_hanging_mail_server_does_not_delay_the_sweep(
    transactional_db, out: AlertReceivers, watch, daemons, redis_client: Redis
) -> None:
    out.smtp.silent.set()
    fail_since(watch, 16)
    redis_client.delete("docora:heartbeat:sweep")
    sweep = daemons.sweep()
    wait_for(lambda: out.events == [("alert", "failing", 1)], timeout=30)
    for _ in range(2):
        redis_client.delete("docora:heartbeat:sweep")
        wait_for(lambda: redis_client.exists("docora:heartbeat:sweep"), timeout=8)
    sweep.terminate()
    begun = time.monotonic()
    assert sweep.process.wait(20) == 0
    assert time.monotonic() - begun < 10


@pytest.mark.early(3)
def test_worker_sends_alerts_when_the_sweep_is_gone(transactional_db, out, daemons, redis_client: Redis) -> None:
    redis_client.set("docora:heartbeat:sweep", timezone.now().timestamp() - 600)
    daemons.worker()
    wait_for(lambda: Alert.objects.filter(kind=AlertKind.SWEEP_LATE).exists(), timeout=30)
    time_passes(minutes=2)
    wait_for(lambda: out.events == [("alert", "sweep_late", 1)], timeout=30)


# --- Contents ----------------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_log_row_page_or_message(
    transactional_db, out: AlertReceivers, watch, daemons, settings
) -> None:
    repeated = base64.b64encode(f"\0docora\0{PASSWORD}".encode()).decode()
    out.smtp.answers["AUTH"] = f"535 not {PASSWORD}, not {repeated}"
    out.webhook_answer = saying("404 Not Found", out.hook_url.encode())
    fail_since(watch, 16)
    assert daemons.start("sweep", "--once").process.wait(60) == 0
    assert daemons.start("send_test_alert").process.wait(60) == 1
    settings.DEBUG = True
    reporter = get_exception_reporter_class(RequestFactory().get("/"))(
        RequestFactory().get("/"), ValueError, None, None
    )
    admin = staff("vera", *(f"view_{model}" for model in VIEWS))
    rows = " ".join(AlertChannel.objects.values_list("last_error", flat=True))
    places = [daemons.logs(), rows, admin.get("/admin/").text, reporter.get_traceback_html(), json.dumps(out.posted)]
    assert "535" in rows
    assert "alert_not_sent" in places[0]
    for place in places:
        for secret in (PASSWORD, repeated, HOOK_SECRET):
            assert secret not in place


def test_no_part_of_a_password_is_left_where_a_long_answer_is_cut(out: AlertReceivers) -> None:
    start = "x" * 190
    out.smtp.answers["AUTH"] = f"535 {start} {PASSWORD}"
    assert start in (problem := send_mail("Subject", "Body", ["ops@docora.example"]))
    assert PASSWORD[:4] not in problem


def test_names_cannot_inject_headers_mentions_or_lines(out: AlertReceivers) -> None:
    app = make_app("x\r\nBcc: all@world.example\u2028<!channel> @here <https://evil.example|click>")
    fail_since(make_watch(app, "docs"), 16)
    next_round()
    (mail,) = out.smtp.mails
    assert mail.message["Bcc"] is None
    assert mail.recipients == ["ops@docora.example", "night@docora.example"]
    assert len(mail.message["Subject"]) <= 150
    assert not [line for line in mail.text.splitlines() if line.startswith(("Bcc", "<"))]
    assert not set("<>@\r\n\u2028") & set(out.posted[0]["text"])
    assert b"\nBcc" not in out.heads[0]


def test_webhook_follows_the_outbound_http_rules(out: AlertReceivers, watch, settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []
    fail_since(watch, 16)
    next_round()
    assert out.events == []
    assert "127.0.0.1 is" in channel("webhook").last_error


# --- Test alerts -------------------------------------------------------------------------------------------------------


def send_test_alert() -> str:
    said = StringIO()
    call_command("send_test_alert", stdout=said)
    return said.getvalue()


def test_test_alert_names_the_channels_that_accepted_it(out: AlertReceivers) -> None:
    assert send_test_alert() == (
        "Delivered the test alert to the webhook.\n"
        "Delivered the test alert to the mail server, for ops@docora.example, night@docora.example.\n"
    )
    assert out.events == [("alert", "test", 0)]
    assert "This is a test alert" in out.posted[0]["text"]
    assert len(out.subjects) == 1


def test_failed_test_alert_says_why(out: AlertReceivers, settings) -> None:
    out.smtp.stop()
    with pytest.raises(
        CommandError,
        match=r"could not be delivered\. The mail server 127.0.0.1 didn't accept the message: Connection refused",
    ):
        send_test_alert()
    out.smtp.start()
    out.smtp.answers["DATA"] = "354 go on\r\n554 no\r\nspam"
    with pytest.raises(CommandError, match=r"didn't accept the message: 554 no\."):
        send_test_alert()
    out.smtp.answers = {"EHLO": "221 bye"}
    with pytest.raises(CommandError, match=r"didn't accept the message: .+\.") as refused:
        send_test_alert()
    assert "None" not in str(refused.value)
    out.smtp.answers = {}
    out.webhook_answer = saying("500 Oops")
    with pytest.raises(CommandError, match="ALERT_WEBHOOK_URL returned HTTP 500"):
        send_test_alert()
    settings.MAILERS["default"]["OPTIONS"]["password"] = "gehe\xefm"
    with pytest.raises(CommandError, match="didn't accept the message: 'ascii' codec can't encode"):
        send_test_alert()


def test_accepted_test_alert_ends_the_wait_of_a_channel_that_was_down(out: AlertReceivers, watch) -> None:
    """The settings were corrected, and the test arrived, but the alerts themselves up to an hour later."""
    viewer = staff("vera", *(f"view_{model}" for model in VIEWS))
    out.webhook_answer = saying("404 Not Found")
    fail_since(watch, 16)
    for _ in range(5):
        next_round()
    assert len(out.events) == 5
    with pytest.raises(CommandError):
        send_test_alert()
    alerts.run_round()
    assert channel("webhook").due_at > timezone.now() + timedelta(minutes=4)
    out.webhook_answer = saying()
    assert send_test_alert().splitlines()[0] == (
        "Delivered the test alert to the webhook. The alerts that it didn't accept before follow within a minute."
    )
    alerts.run_round()
    assert out.events[-1] == ("alert", "failing", 1)
    assert len(out.subjects) == 3, "the alert and two tests: no mail is sent twice"
    assert "can't be delivered" not in viewer.get("/admin/").text


def test_test_alert_needs_no_database(transactional_db, out: AlertReceivers, daemons) -> None:
    daemons.environment["DATABASE_URL"] = "postgresql://docora@127.0.0.1:1/docora"
    command = daemons.start("send_test_alert")
    assert command.process.wait(60) == 0, daemons.logs()
    assert "Delivered the test alert to the webhook.\n" in daemons.logs()
    assert out.events == [("alert", "test", 0)]


def test_test_alert_without_channels_names_the_settings(db) -> None:
    with pytest.raises(CommandError, match=r"Alerts are off\. Set ALERT_WEBHOOK_URL"):
        send_test_alert()
