"""Send a test ping, which checks that the app's endpoint answers and accepts the signature."""

from dataclasses import dataclass

from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services import audit
from deliveries_app.services.requests import NotFound
from deliveries_app.webhooks.client import post_ping
from deliveries_app.webhooks.keyring import Keyring, response_texts
from docora.http.client import Cause, Outcome
from repositories_app.git.remote import new_client

PERMISSION = "deliveries_app.change_app"

_HINTS: dict[Cause | int, str] = {
    Cause.DNS: "The host name of the base URL does not resolve. Check its spelling and this machine's DNS.",
    Cause.REFUSED_ADDRESS: "Docora is not allowed to call this address. If it is correct, ask an administrator to add its "
    "network to ALLOWED_PRIVATE_NETWORKS (and to set ALLOW_HTTP for plain http).",
    Cause.CONNECT: "Nothing accepts connections there. Check the port, and that the app is running.",
    Cause.TLS: "The TLS certificate was not accepted. Check its host name, its dates and its chain.",
    Cause.TIMEOUT: "The app did not answer within 30 seconds.",
    Cause.NETWORK: "The connection broke before a response arrived. Check the app's log, and any proxies in between.",
    401: "The app rejected the signature. It must verify with the signing key that Docora showed once. If that key is lost, "
    "rotate it.",
    403: "The app rejected the request. Check its signing key, and any firewall in front of it.",
    404: "There is no /ping below the base URL. Apps written before pings existed also answer like this; otherwise, check "
    "the base URL.",
    405: "The URL does not accept POST requests. Check the base URL.",
    410: "The app asked for no more notifications, so it was paused.",
    429: "The app limits its request rate. Lower its number of notifications in flight.",
}
_REDIRECT = "The app redirects, and Docora does not follow redirects. Enter the redirect's target as the base URL."
_SERVER_ERROR = "The app failed while handling the ping. Its log has the cause."
_OTHER = "The app answered, but not with a 2xx status. Check its log or documentation."


@dataclass(frozen=True)
class Ping:
    """The result of a ping. `body` is the start of the response, `seconds` how long the response took."""

    delivered: bool
    message: str
    hint: str
    status: int | None
    seconds: float
    body: str
    new_key: bool


def send_ping(actor: Actor, app: App, *, new_key: bool = False) -> Ping:
    """Send a signed ping and wait for the response. A 410 response pauses the app.

    With `new_key`, only the new key of a rotation signs the ping. Once the app has accepted it, the old key can be retired.
    Raises `NotFound` if the app is being removed.
    """
    actor.require(PERMISSION)
    actor.require_app(app)
    row = App.objects.filter(pk=app.pk, ended_at=None).first()
    if row is None:
        raise NotFound("App not found")
    app = row
    new_key = new_key and app.is_rotating_key
    ring = Keyring.of_new_key(app) if new_key else Keyring(app)
    with new_client(max_connections=1) as client:
        outcome = post_ping(client, app, ring)
    if outcome.ok:
        App.objects.filter(pk=app.pk).update(pinged_at=Now())
    if outcome.status == 410:
        App.objects.filter(pk=app.pk).update(paused=True, paused_reason=_HINTS[410])
    message = _message(outcome)
    audit.record(actor, [app], f"Sent a test ping{' with the new key' if new_key else ''}: {message}")
    return Ping(
        delivered=outcome.ok,
        message=message,
        hint="" if outcome.ok else _hint(outcome),
        status=outcome.status,
        seconds=outcome.elapsed,
        body=response_texts(app, [outcome.body])[0],
        new_key=new_key,
    )


def _message(outcome: Outcome) -> str:
    if outcome.ok:
        return f"The app accepted the ping: it answered {outcome.status}."
    return outcome.message if outcome.cause else f"The app answered {outcome.status}."


def _hint(outcome: Outcome) -> str:
    if outcome.cause is not None:
        return _HINTS[outcome.cause]
    status = outcome.status or 0
    if 300 <= status < 400:
        return _REDIRECT
    return _HINTS.get(status) or (_SERVER_ERROR if status >= 500 else _OTHER)
