"""Receive alerts with a real webhook and a real mail server, and let time pass."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.db.models import F
from django.utils import timezone

from deliveries_app.models import Alert, AlertChannel, AlertRound, AppRepository
from deliveries_app.models.root_causes import RootCause
from deliveries_app.monitoring import alerts
from tests.docora.http_server import ScriptedServer, saying, servers
from tests.support.smtp import SmtpServer
from tests.support.staff import fail

HOOK_SECRET, PASSWORD = "B0secretpath", "pa$$word-of-mail"


class AlertReceivers:
    """A webhook and a mail server, entered in the settings. `webhook_answer` makes the webhook's answer."""

    def __init__(self, hook: ScriptedServer, smtp: SmtpServer, settings: Any) -> None:
        self._hook, self.smtp, self.webhook_answer = hook, smtp, saying()
        hook._answer = lambda *request: self.webhook_answer(*request)
        self.hook_url = hook.url.replace("/hook", f"/services/{HOOK_SECRET}")
        settings.ALERT_WEBHOOK_URL = self.hook_url
        settings.ALERT_EMAILS = ["ops@docora.example", "night@docora.example"]
        settings.DEFAULT_FROM_EMAIL = "Docora <docora@docora.example>"
        options = {"host": "127.0.0.1", "port": smtp.port, "username": "docora", "password": PASSWORD, "timeout": 10}
        settings.MAILERS = {"default": {"OPTIONS": options}}

    @property
    def posted(self) -> list[dict[str, Any]]:
        """The bodies that were posted to the webhook, whatever it answered."""
        return [json.loads(body) for _, body in self._hook.requests]

    @property
    def heads(self) -> list[bytes]:
        return [head for head, _ in self._hook.requests]

    @property
    def events(self) -> list[tuple[str, str, int]]:
        return [(body["event"], body["kind"], body["total"]) for body in self.posted]

    @property
    def subjects(self) -> list[str]:
        """The subjects of the mails received."""
        return [mail.message["Subject"] for mail in self.smtp.mails]


@contextmanager
def alert_receivers(settings: Any) -> Iterator[AlertReceivers]:
    smtp = SmtpServer()
    with servers() as start:
        yield AlertReceivers(start(), smtp, settings)
    smtp.stop()


def time_passes(**delta: float) -> None:
    """Move the alert rows into the past by this time delta; by default, until the next round is due."""
    by = timedelta(**(delta or {"minutes": 10}))
    for model, *names in (
        (AlertRound, "detected_at"),
        (AlertChannel, "due_at", "reminded_at", "created_at"),
        (Alert, "since"),
    ):
        model.objects.update(**{name: F(name) - by for name in names})


def next_round() -> None:
    time_passes()
    alerts.run_round()


def fail_since(watch: AppRepository, minutes: float, root: RootCause = RootCause.TIMEOUT) -> None:
    fail(watch, root)
    AppRepository.objects.filter(pk=watch.pk).update(failing_since=timezone.now() - timedelta(minutes=minutes))
