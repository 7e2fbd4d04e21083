"""Send a test ping, which checks that the app's endpoint answers and accepts the signature."""

from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditAction
from deliveries_app.permissions import Permission
from deliveries_app.services.app_settings import continue_syncs
from deliveries_app.services.requests import NotFound
from deliveries_app.sync.endpoint_health import record_up
from deliveries_app.sync.outcomes import pause_app
from deliveries_app.webhooks.client import describe_outcome, post_ping
from deliveries_app.webhooks.keyring import REFUSALS, Keyring, response_texts
from deliveries_app.webhooks.payloads import endpoint
from docora.http.client import Cause, Outcome
from docora.http.egress import CHECK_PROXY, THROUGH_PROXY
from docora.http.messages import GATEWAY_ERRORS
from repositories_app.git.remote import new_client

_HINTS: dict[Cause | int, str] = {
    Cause.DNS: "The base URL's hostname doesn't resolve. Check the URL and this server's DNS.",
    Cause.REFUSED_ADDRESS: "Docora isn't allowed to connect to this address. If it is correct, ask an administrator to add its "
    "network to ALLOWED_PRIVATE_NETWORKS (and to set ALLOW_HTTP for plain http).",
    Cause.CONNECT: "Check that the app is running, and check the port.",
    Cause.TLS: "Check that the port uses TLS, and that the certificate matches the hostname, hasn't expired, isn't self-signed, "
    "and is sent with its intermediate certificates.",
    Cause.TIMEOUT: "Check the app's log, and any proxy or firewall in front of it.",
    Cause.NETWORK: "Check the scheme and port of the base URL, the app's log, and any proxy in front of it.",
    401: "The app rejected the signature, or a proxy in front of it requires authentication. Check that the app uses the signing "
    "key from Docora. If it has lost the key, rotate it.",
    403: "The app rejected the request. Check its signing key, any firewall in front of it, and whether its framework demands a "
    "CSRF token.",
    404: "There is no /ping under the base URL. Apps don't have to implement it. If this one does, check the base URL.",
    405: "The URL doesn't accept POST requests. Check the base URL.",
    410: "The app asked to stop receiving notifications and was paused.",
    429: "The app limits its request rate. Lower its concurrent requests.",
    **dict.fromkeys(
        GATEWAY_ERRORS,
        "The app failed to handle the ping, or a proxy in front of it couldn't reach it. Check its log and the proxy's.",
    ),
}
_NEW_KEY_REJECTED = "The app rejected the new key. Give it the new key, then send another ping."
_BOTH_KEYS_REJECTED = (
    "The app rejected both keys. Check that it uses one of them. If it has lost them, discard the new key and rotate "
    "again."
)


@dataclass(frozen=True)
class Ping:
    """The result of a ping. `body` is the start of the response.

    `seconds` is the response time, or 0 if Docora is not allowed to connect to the address.
    """

    delivered: bool
    message: str
    hint: str
    status: int | None
    seconds: float
    body: str
    new_key: bool


def send_ping(actor: Actor, app: App, *, new_key: bool = False) -> Ping:
    """Send a signed ping and wait for the response. A 410 response pauses the app.

    If the app accepts a ping that it didn't request itself, the hold of an endpoint that was down ends.
    With `new_key`, only the new key of a rotation signs the ping. Once the app has accepted it, the old key can be retired.
    Raises `NotFound` if the app is being removed.
    """
    actor.require_app(app, Permission.CHANGE_APPS)
    row = App.objects.filter(pk=app.pk, ended_at=None).first()
    if row is None:
        raise NotFound("App not found")
    app = row
    new_key = new_key and app.is_rotating_key
    ring = Keyring.of_new_key(app) if new_key else Keyring(app)
    with new_client(max_connections=1) as client:
        outcome = post_ping(client, app, ring)
    result: dict[str, Any] = {"pinged_at": Now(), "ping_failed_at": None} if outcome.ok else {"ping_failed_at": Now()}
    accepted = f"The app accepted the ping (HTTP {outcome.status})."
    message = accepted if outcome.ok else describe_outcome(outcome)
    only_lacks_new_key = new_key and outcome.status in REFUSALS  # it may accept everything else
    with transaction.atomic():
        same_endpoint = App.objects.filter(pk=app.pk, base_url=app.base_url)
        if not only_lacks_new_key:
            same_endpoint.update(**result)
        if outcome.ok and actor.app is None and (down := same_endpoint.filter(down_count__gt=0).first()):
            record_up(down)
            continue_syncs(down)
        sent = f"Sent a test ping{' with the new key' if new_key else ''}: {message}"
        audit.record(actor, AuditAction.PING, [app], sent)
        if outcome.status == 410:
            pause_app(app, _HINTS[410])
    return Ping(
        delivered=outcome.ok,
        message=message,
        hint="" if outcome.ok else _hint(outcome, app, new_key=new_key),
        status=outcome.status,
        seconds=0.0 if outcome.cause is Cause.REFUSED_ADDRESS else outcome.elapsed,
        body=response_texts(app, [outcome.body])[0],
        new_key=new_key,
    )


def _hint(outcome: Outcome, app: App, *, new_key: bool) -> str:
    if outcome.cause is not None:
        return CHECK_PROXY if THROUGH_PROXY in outcome.message else _HINTS[outcome.cause]
    status = outcome.status or 0
    if status == 401 and app.is_rotating_key:
        return _NEW_KEY_REJECTED if new_key else _BOTH_KEYS_REJECTED
    if 300 <= status < 400:
        return _redirect_hint(app, outcome)
    if status in _HINTS:
        return _HINTS[status]
    if 500 <= status < 600:
        return "The app failed to handle the ping. Check its log."
    return "Only 2xx responses count as accepted. Check the app's log."


def _redirect_hint(app: App, outcome: Outcome) -> str:
    hint = "Docora doesn't follow redirects. Change the base URL if the app has moved."
    url = endpoint(app.base_url, "ping")
    try:
        target = outcome.redirect_target(url)
    except ValueError:
        return hint
    return hint if target == url else f"The app redirects to {response_texts(app, [target.encode()])[0]}. {hint}"
