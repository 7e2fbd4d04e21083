"""Deliveries: a signed ping of a receiver of our own on this machine, and of an app that is asked for by its id."""

import tempfile
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.monitoring.doctor.findings import Finding, fine, problem
from deliveries_app.receiver import Receiver
from deliveries_app.services.pinging import post_ping, send_ping
from deliveries_app.services.requests import NotFound
from deliveries_app.webhooks.keyring import Keyring
from docora import http
from docora.http.client import HttpClient, Outcome
from docora.security import crypto

_LOOPBACK = [ip_network("127.0.0.0/8")]


def on_this_machine() -> Iterator[Finding]:
    """From a stored key to a verified signature: encryption, signing, JSON and the HTTP client of every notification,
    against the verification of the reference client. No stored app is touched; the one here is never saved."""
    key = crypto.decrypt(crypto.encrypt(crypto.new_webhook_key()))
    with tempfile.TemporaryDirectory() as directory, Receiver(Path(directory), key) as receiver:
        accepted = _ping(receiver.url, key)
        said = receiver.log[-1] if receiver.log else None
        refused = _ping(receiver.url, crypto.new_webhook_key())
    if not accepted.ok or said is None or not said.verified:
        yield problem(
            f"A signed ping did not reach a receiver on this machine. {accepted.message} {said.outcome if said else ''}".strip(),
            "No app would accept a notification: look at the clock, the keys and the firewall of this machine.",
        )
    elif refused.status != 401:
        yield problem(
            f"A receiver on this machine took a ping that was signed with another key. {refused.message}",
            "Signatures prove nothing then. Please report it.",
        )
    else:
        yield fine(
            f"A signed ping reached a receiver on this machine and was verified, in {accepted.elapsed * 1000:.0f} ms; one "
            "signed with another key was refused."
        )


def _ping(url: str, key: str) -> Outcome:
    """With this key and no other; loopback is allowed for this client alone."""
    app = App(name="doctor", base_url=url, new_auth_key=key)
    with HttpClient(_LOOPBACK, allow_http=True, user_agent=http.user_agent(), max_connections=1) as client:
        return post_ping(client, app, Keyring.of_new_key(app))


def to_app(app_id: str) -> Iterator[Finding]:
    """The test ping of the app's page."""
    app = App.objects.filter(app_id=app_id).first()
    try:
        if app is None:
            raise NotFound
        ping = send_ping(Actor.command(), app)
    except NotFound:
        yield problem(f"There is no app {app_id}.", "Take the id from the app's page; it begins with app_.")
    except crypto.DecryptionError as error:
        yield problem(str(error))
    else:
        if ping.delivered:
            yield fine(f"{app}: {ping.words}")
        else:
            yield problem(f"{app}: {ping.words}", ping.hint)
