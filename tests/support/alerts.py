"""Alerts under test: a webhook and a mail server that are really called, and time that has passed."""

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


class Outside:
    """Where alerts go. `hook_says` is the webhook's answer."""

    def __init__(self, hook: ScriptedServer, smtp: SmtpServer, settings: Any) -> None:
        self._hook, self.smtp, self.hook_says = hook, smtp, saying()
        hook._answer = lambda *request: self.hook_says(*request)
        self.hook_url = hook.url.replace("/hook", f"/services/{HOOK_SECRET}")
        settings.ALERT_WEBHOOK_URL = self.hook_url
        settings.ALERT_EMAILS = ["ops@docora.example", "night@docora.example"]
        settings.DEFAULT_FROM_EMAIL = "Docora <docora@docora.example>"
        options = {"host": "127.0.0.1", "port": smtp.port, "username": "docora", "password": PASSWORD, "timeout": 10}
        settings.MAILERS = {"default": {"OPTIONS": options}}

    @property
    def hooked(self) -> list[dict[str, Any]]:
        """What was posted to the webhook, whatever it answered."""
        return [json.loads(body) for _, body in self._hook.requests]

    @property
    def heads(self) -> list[bytes]:
        return [head for head, _ in self._hook.requests]

    @property
    def events(self) -> list[tuple[str, str, int]]:
        return [(body["event"], body["kind"], body["total"]) for body in self.hooked]

    @property
    def mails(self) -> list[str]:
        """The subjects."""
        return [mail.message["Subject"] for mail in self.smtp.mails]


@contextmanager
def outside(settings: Any) -> Iterator[Outside]:
    smtp = SmtpServer()
    with servers() as start:
        yield Outside(start(), smtp, settings)
    smtp.stop()


def time_passes(**delta: float) -> None:
    """As if what the rows say had been so long ago; without a length, until the next round."""
    by = timedelta(**(delta or {"minutes": 10}))
    for model, *names in (
        (AlertRound, "looked_at"),
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
