"""Send one signed notification and wait for the response."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from django.utils import timezone

from deliveries_app.models import App, AppRepository, new_run_id
from deliveries_app.webhooks.keyring import REFUSALS, Keyring, Keys
from deliveries_app.webhooks.payloads import PING, PING_REASON, Envelope, RepositoryInfo, endpoint, notice_body
from docora.http.client import Cause, HttpClient, Outcome, Request
from docora.text import new_id
from repositories_app.git.url import owner_and_name


def info_of(watch: AppRepository) -> RepositoryInfo:
    """Return the `repository` object for the watch's notifications."""
    return RepositoryInfo(watch.repository.repository_id, watch.github_url, *owner_and_name(watch.github_url))


def post_signed(
    client: HttpClient,
    url: str,
    fields: Mapping[str, Any],
    message_id: str,
    sequence: int,
    envelope: Envelope,
    keyring: Keyring,
    alive: Callable[[], None] | None,
    can_send: Callable[[], bool] | None = None,
    max_body: int = 4096,
) -> Outcome:
    """Post a signed body, wait, and return the outcome. During a key rotation, retry a 401 or 403 with the other key.

    Call `alive` about every second while waiting. `can_send` is called just before the first byte is sent: if it returns
    False, nothing is sent. `max_body` bytes of the response are kept.
    """

    def post(keys: Keys) -> Outcome:
        now = datetime.now(UTC)
        body = notice_body(fields, now)
        headers = envelope.headers(body, message_id, sequence, int(now.timestamp()), keys)
        request = Request("POST", url, headers, body, max_body=max_body, repeatable=True, can_send=can_send)
        outcome = client.request(request, alive)
        if outcome.ok:
            keyring.accepted(keys)
        return outcome

    first = keyring.keys
    outcome = post(first)
    other = keyring.other(first) if outcome.status in REFUSALS else None
    return post(other) if other else outcome


def post_ping(client: HttpClient, app: App, keyring: Keyring, alive: Callable[[], None] | None = None) -> Outcome:
    """Send a ping, signed like any other notification, and return the outcome."""
    envelope = Envelope(app.app_id, new_run_id(), PING_REASON)
    sequence = int(timezone.now().timestamp() * 1_000_000)
    url = endpoint(app.base_url, "ping")
    return post_signed(client, url, PING, f"msg_{new_id('ping')}", sequence, envelope, keyring, alive)


def describe_outcome(outcome: Outcome) -> str:
    """Return one sentence that says how a request to the app failed."""
    return outcome.message if outcome.cause else f"The app returned HTTP {outcome.status}."


def asked_to_wait(outcome: Outcome) -> float | None:
    """Return for how many seconds a busy app (429 or 503) asked Docora to wait, or None if it did not say."""
    return outcome.retry_after(time.time()) if outcome.status in {429, 503} else None


def timed_out(outcome: Outcome) -> bool:
    """Return whether the app did not respond in time, to Docora or to a gateway in front of it."""
    return outcome.cause is Cause.TIMEOUT or outcome.status == 504
