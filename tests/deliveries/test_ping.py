"""The test ping says in words what is wrong with an app's endpoint."""

import socket

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.receiver import Answer
from deliveries_app.services.pinging import Ping, send_ping
from tests.support.staff import staff
from tests.support.world import World

ME = Actor.command()


def ping_to(world: World, url: str) -> Ping:
    App.objects.filter(pk=world.app.pk).update(base_url=url)
    return send_ping(ME, world.app)


def test_a_ping_that_is_accepted_says_so_with_status_and_time(world: World) -> None:
    ping = send_ping(ME, world.app)
    assert (ping.delivered, ping.status, ping.hint) == (True, 200, "")
    assert ping.words == "The app accepted the ping: it answered 200."
    assert 0 < ping.seconds < 5
    record = world.requests("ping")[0]
    assert (record.verified, record.outcome) == (True, "pong")
    assert record.webhook_id.startswith("msg_ping_")
    assert "." not in record.webhook_id
    assert record.sequence > 10**15


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (302, "redirects are not followed"),
        (400, "not with 2xx"),
        (401, "refused the signature"),
        (403, "signing key"),
        (404, "/ping"),
        (405, "no POST"),
        (429, "how often"),
        (500, "its log"),
        (503, "its log"),
    ],
)
def test_every_answer_that_is_no_2xx_has_a_hint(world: World, status: int, hint: str) -> None:
    world.answer(lambda note: Answer(status, {"why": "Because of that"}))
    ping = send_ping(ME, world.app)
    assert (ping.delivered, ping.status, ping.words) == (False, status, f"The app answered {status}.")
    assert hint in ping.hint
    assert "Because of that" in ping.body


def test_a_410_pauses_the_app(world: World) -> None:
    world.answer(lambda note: Answer(410))
    assert "was paused" in send_ping(ME, world.app).hint
    assert App.objects.get(pk=world.app.pk).paused


def test_a_wrong_key_is_told_as_a_refused_signature(world: World) -> None:
    world.receiver.keys = "quite-another-signing-key"
    assert "refused the signature" in send_ping(ME, world.app).hint


def test_a_name_that_does_not_resolve(world: World) -> None:
    assert "does not resolve" in ping_to(world, "http://nobody.invalid/hooks").hint


def test_an_address_that_docora_may_not_call(world: World, settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []
    ping = send_ping(ME, world.app)
    assert "loopback" in ping.words
    assert "ALLOWED_PRIVATE_NETWORKS" in ping.hint


def test_a_port_where_nobody_listens(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "check the port" in ping_to(world, f"http://127.0.0.1:{port}").hint


def test_a_server_that_speaks_no_tls(world: World) -> None:
    assert "certificate" in ping_to(world, world.receiver.url.replace("http:", "https:")).hint


def test_it_takes_the_permission_to_change_apps_and_is_in_the_history(world: World) -> None:
    from django.contrib.admin.models import LogEntry

    staff("vera", "view_app")
    staff("otto", "view_app", "change_app")
    with pytest.raises(PermissionDenied):
        send_ping(Actor.of_user(User.objects.get(username="vera")), world.app)
    send_ping(Actor.of_user(User.objects.get(username="otto")), world.app)
    assert "Sent a test ping" in LogEntry.objects.get().change_message
