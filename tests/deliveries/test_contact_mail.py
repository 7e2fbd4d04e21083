"""An app's contact gets an email, through a real mail server, when the base URL or a key changes. Nothing waits for it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, ContactMail
from deliveries_app.monitoring import alerts
from deliveries_app.monitoring.alerts import contacts
from deliveries_app.services import change_app, keys, tokens
from deliveries_app.sweep.retention import prune
from tests.support.alerts import PASSWORD, AlertReceivers, alert_receivers
from tests.support.processes import Daemons, in_threads
from tests.support.receiver import wait_for
from tests.support.smtp import Mail
from tests.support.staff import make_app

APPS = "/admin/deliveries_app/app/"


@pytest.fixture
def out(settings) -> Iterator[AlertReceivers]:
    """A mail server, without alerts."""
    with alert_receivers(settings) as found:
        settings.ALERT_EMAILS, settings.ALERT_WEBHOOK_URL = [], ""
        yield found


@pytest.fixture
def app(db) -> App:
    return make_app("Portal")


def time_passes(**delta: float) -> None:
    by = timedelta(**delta)
    ContactMail.objects.update(created_at=F("created_at") - by, due_at=F("due_at") - by, sent_at=F("sent_at") - by)


def test_mail_arrives_for_every_kind_of_change(out: AlertReceivers, app: App) -> None:
    admin = Client(REMOTE_ADDR="203.0.113.7")
    admin.force_login(User.objects.create_superuser("olga"))
    form = admin.get(f"{APPS}{app.pk}/settings/").context["adminform"].form
    fields = {name: value for name, value in form.initial.items() if value and name != "paused"}
    fields |= {f"initial-{name}": form.initial[name] for name in ("paused", "max_in_flight")}
    assert admin.post(f"{APPS}{app.pk}/settings/", fields | {"description": "New"}).status_code == 302
    assert not ContactMail.objects.exists(), "neither the base URL nor a key"
    moved = {"base_url": "https://new.example", "email": "new@b.example"}
    assert admin.post(f"{APPS}{app.pk}/settings/", fields | moved).status_code == 302
    app.refresh_from_db()
    of_app = Actor.of_app(app, address="203.0.113.8")
    tokens.rotate_app_token(of_app, app, overlap=timedelta(0))
    until = tokens.rotate_app_token(of_app, app).old_accepted_until
    tokens.retire_old_tokens(of_app, app)
    keys.start_key_rotation(Actor.command(), app)
    keys.cancel_key_rotation(Actor.command(), app)
    alerts.run_round()
    first, second = sorted(out.smtp.mails, key=lambda mail: mail.recipients[0])
    assert (first.recipients, second.recipients) == (["a@b.example"], ["new@b.example"])
    assert first.message["Subject"] == "[Docora] Portal: 2 changes of security settings"
    assert first.message["Auto-Submitted"] == "auto-generated"
    for text in (
        "UTC, by an administrator: The base URL was changed from https://x.example to https://new.example.",
        "The contact's email address was changed. Further messages go to the new one.",
        app.app_id,
    ):
        assert text in first.text, text
    assert "olga" not in first.text
    by = "with the app's API token from 203.0.113.8"
    told = [line.partition("UTC, ")[2] for line in second.text.splitlines() if line.startswith("- ")]
    assert told == [
        f"{by}: The API token was rotated. The old one was revoked.",
        f"{by}: The API token was rotated. Older ones are accepted until {until:%Y-%m-%d %H:%M} UTC.",
        f"{by}: The old API tokens were revoked. Only the newest one is accepted.",
        "by an administrator, on the command line: A rotation of the signing key was started. Notifications are "
        "signed with both keys.",
        "by an administrator, on the command line: The new signing key was discarded. Notifications are signed with the "
        "old key only.",
    ]
    secrets = (app.client_auth_key, App.objects.get().new_auth_key or "none", "docora_")
    assert not [secret for secret in secrets if secret in first.text + second.text]


def test_broken_mail_server_delays_but_fails_nothing(out: AlertReceivers, app: App) -> None:
    out.smtp.stop()
    tokens.rotate_app_token(Actor.command(), app)
    alerts.run_round()
    mail = ContactMail.objects.get()
    assert (mail.attempts, mail.sent_at) == (1, None)
    alerts.run_round()
    assert ContactMail.objects.get().attempts == 1, "not due yet"
    out.smtp.start()
    out.smtp.answers["RCPT"] = "550 no such mailbox"
    other = make_app("Search")
    App.objects.filter(pk=other.pk).update(email="ok@search.example")
    time_passes(minutes=2)
    alerts.run_round()
    mail = ContactMail.objects.get()
    assert mail.attempts == 2
    assert mail.due_at - timezone.now() > timedelta(seconds=45), "twice as long as after the first failure"
    tokens.rotate_app_token(Actor.command(), App.objects.get(pk=other.pk))
    out.smtp.answers.clear()
    alerts.run_round()
    assert [mail.recipients for mail in out.smtp.mails] == [["ok@search.example"]], "one bad address stops no other"
    time_passes(days=4)
    out.smtp.stop()
    alerts.run_round()
    assert not ContactMail.objects.filter(sent_at=None).exists(), "given up"


def test_mails_of_one_app_are_gathered(out: AlertReceivers, app: App) -> None:
    for _ in range(3):
        tokens.rotate_app_token(Actor.command(), app)
        alerts.run_round()
    assert len(out.smtp.mails) == 1
    sent = ContactMail.objects.get(sent_at__isnull=False)
    assert set(ContactMail.objects.filter(sent_at=None).values_list("due_at", flat=True)) == {
        sent.sent_at + timedelta(seconds=contacts.GATHER_SECONDS)
    }
    for _ in range(contacts.SHOWN):
        tokens.rotate_app_token(Actor.command(), app)
    time_passes(minutes=5, seconds=1)
    alerts.run_round()
    assert len(out.smtp.mails) == 2
    assert out.smtp.mails[1].text.count("\n- ") == contacts.SHOWN
    shown = "and 2 more changes. Administrators see all of them in the app's audit log."
    assert shown in out.smtp.mails[1].text
    assert prune()["mails"] == 0
    time_passes(days=8)
    assert prune()["mails"] == contacts.SHOWN + 3


def test_contact_of_two_apps_gets_a_message_about_each(out: AlertReceivers, app: App, monkeypatch) -> None:
    monkeypatch.setattr(contacts, "SHOWN", 2)
    search = make_app("Search")
    for changed in (app, search, app):
        tokens.rotate_app_token(Actor.command(), changed)
    alerts.run_round()
    assert [subject.partition(":")[0] for subject in out.subjects] == ["[Docora] Portal", "[Docora] Search"]
    assert not [mail for mail in out.smtp.mails if "more change" in mail.text]


def test_mail_server_that_is_down_is_tried_once_in_a_round(out: AlertReceivers, app: App) -> None:
    out.smtp.stop()
    for changed in (app, make_app("Search")):
        tokens.rotate_app_token(Actor.command(), changed)
    alerts.run_round()
    assert list(ContactMail.objects.order_by("pk").values_list("attempts", flat=True)) == [1, 0]


def test_nothing_is_stored_without_a_mail_server(app: App, settings) -> None:
    settings.MAILERS = {}
    tokens.rotate_app_token(Actor.command(), app)
    assert not ContactMail.objects.exists()


def test_mail_is_rolled_back_with_the_change(out: AlertReceivers, app: App) -> None:
    with transaction.atomic():
        tokens.rotate_app_token(Actor.command(), app)
        transaction.set_rollback(True)
    alerts.run_round()
    assert out.smtp.mails == []


def test_names_cannot_inject_headers_or_lines(out: AlertReceivers, app: App) -> None:
    App.objects.update(name="x\r\nBcc: all@world.example", email="a@b.example")
    app.refresh_from_db()
    app.base_url = "https://new.example\r\n- 2026-01-01 00:00 UTC: All is well"
    change_app(Actor.command(), app, ["base_url"])
    alerts.run_round()
    [mail] = out.smtp.mails
    assert mail.message["Bcc"] is None
    assert "\nBcc" not in mail.text
    assert len([line for line in mail.text.splitlines() if line.startswith("- ")]) == 1


@pytest.mark.django_db(transaction=True)
def test_concurrent_processes_send_one_mail(out: AlertReceivers) -> None:
    tokens.rotate_app_token(Actor.command(), make_app("Portal"))
    in_threads(*[contacts.send_due] * 4)
    assert len(out.smtp.mails) == 1


def test_sweep_sends_the_mail(tmp_path: Path, instance_environment: dict[str, str], out: AlertReceivers) -> None:
    more = {
        "EMAIL_URL": f"smtp://docora:{PASSWORD.replace('$', '%24')}@127.0.0.1:{out.smtp.port}",
        "DEFAULT_FROM_EMAIL": "docora@docora.example",
    }
    keys.start_key_rotation(Actor.command(), make_app("Portal"))
    daemons = Daemons(tmp_path, instance_environment | more)
    try:
        daemons.sweep()
        wait_for(lambda: bool(out.smtp.mails), timeout=30)
    finally:
        daemons.close()
    mail: Mail = out.smtp.mails[0]
    assert mail.recipients == ["a@b.example"]
    assert mail.message["From"] == "docora@docora.example"
