"""The test ping: does the app's endpoint answer, and does it accept our signature?"""

from dataclasses import dataclass

from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, Reason, new_run_id
from deliveries_app.services import audit
from deliveries_app.services.requests import NotFound
from deliveries_app.webhooks.client import post_signed
from deliveries_app.webhooks.keyring import Keyring, answers_of
from deliveries_app.webhooks.payloads import PING, Envelope, endpoint
from docora.http.client import Cause, HttpClient, Outcome
from docora.text import new_id
from repositories_app.git.remote import new_client

PERMISSION = "deliveries_app.change_app"

_HINTS: dict[Cause | int, str] = {
    Cause.DNS: "The name of the base URL does not resolve: check its spelling, and the DNS of this machine.",
    Cause.REFUSED_ADDRESS: "Docora may not call this address. If it is right, an administrator adds its network to "
    "ALLOWED_PRIVATE_NETWORKS (and sets ALLOW_HTTP for plain http).",
    Cause.CONNECT: "Nobody accepts connections there: check the port, and whether the app is running.",
    Cause.TLS: "The connection cannot be trusted: check the certificate's name, its date and its chain.",
    Cause.TIMEOUT: "The app did not answer in time: it has to answer within 30 seconds.",
    Cause.NETWORK: "The connection broke before an answer came: look into the app's log, and at proxies in between.",
    401: "The app refused the signature: it must verify with the signing key that Docora showed once. If that is lost, "
    "rotate the key.",
    403: "The app refused the request: check its signing key, and firewalls in front of it.",
    404: "There is no /ping below the base URL. Apps written before pings existed answer like this too; otherwise check "
    "the base URL.",
    405: "The address takes no POST: check the base URL.",
    410: "The app says that it wants no more notifications, and was paused.",
    429: "The app limits how often it is called: lower its number of notifications in flight.",
}
_REDIRECT = "The app redirects, and redirects are not followed: enter the address that it redirects to as base URL."
_BROKEN = "The app failed while it handled the ping: its log has the cause."
_OTHER = "The app answers, but not with 2xx: its log or documentation says why."


@dataclass(frozen=True)
class Ping:
    """What came of a ping, in words; `body` is the beginning of the answer, `seconds` its time."""

    delivered: bool
    words: str
    hint: str
    status: int | None
    seconds: float
    body: str
    new_key: bool


def send_ping(actor: Actor, app: App, *, new_key: bool = False) -> Ping:
    """Send a signed ping and wait for the answer. `new_key`: signed with nothing but the key that is being introduced;
    once that is accepted, the old key may be retired. Raises `NotFound` for an app that is being removed."""
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
    if outcome.status == 410:
        App.objects.filter(pk=app.pk).update(paused=True, paused_reason=_HINTS[410])
    words = _words(outcome)
    audit.record(actor, [app], f"Sent a test ping{' with the new key' if new_key else ''}: {words}")
    return Ping(
        delivered=outcome.ok,
        words=words,
        hint="" if outcome.ok else _hint(outcome),
        status=outcome.status,
        seconds=outcome.elapsed,
        body=answers_of(app, [outcome.body])[0],
        new_key=new_key,
    )


def post_ping(client: HttpClient, app: App, ring: Keyring) -> Outcome:
    """The request itself, as every notification is made, signed and sent."""
    envelope = Envelope(app.app_id, new_run_id(), Reason.INITIAL)
    sequence = int(timezone.now().timestamp() * 1_000_000)
    url = endpoint(app.base_url, "ping")
    return post_signed(client, url, PING, f"msg_{new_id('ping')}", sequence, envelope, ring)


def _words(outcome: Outcome) -> str:
    if outcome.ok:
        return f"The app accepted the ping: it answered {outcome.status}."
    return outcome.message if outcome.cause else f"The app answered {outcome.status}."


def _hint(outcome: Outcome) -> str:
    if outcome.cause is not None:
        return _HINTS[outcome.cause]
    status = outcome.status or 0
    if 300 <= status < 400:
        return _REDIRECT
    return _HINTS.get(status) or (_BROKEN if status >= 500 else _OTHER)
