"""The test ping explains what is wrong with an app's endpoint."""

import socket

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.receiver import Answer
from deliveries_app.services import NotFound, delete_app
from deliveries_app.services.pinging import Ping, send_ping
from docora.db.clock import from_now
from tests.support.audit import by_users
from tests.support.staff import staff
from tests.support.world import World

ME = Actor.command()


def ping_to(world: World, url: str) -> Ping:
    App.objects.filter(pk=world.app.pk).update(base_url=url)
    return send_ping(ME, world.app)


def test_accepted_ping(world: World) -> None:
    ping = send_ping(ME, world.app)
    assert (ping.delivered, ping.status, ping.hint) == (True, 200, "")
    assert ping.message == "The app accepted the ping (HTTP 200)."
    assert 0 < ping.seconds < 5
    record = world.requests("ping")[0]
    assert (record.verified, record.outcome) == (True, "pong")
    assert record.webhook_id.startswith("msg_ping_")
    assert "." not in record.webhook_id
    assert record.sequence > 10**15


@pytest.mark.parametrize("status", [200, 500])
def test_accepted_ping_ends_the_hold_of_an_app_that_was_down(world: World, status: int) -> None:
    """The page said that the app had accepted the ping, and that its endpoint was down, next try in an hour."""
    world.watch({"a.txt": b"a"})
    AppRepository.objects.update(next_sync_at=from_now(3600))
    App.objects.update(down_count=9, cooldown_until=from_now(3600))
    world.answer(lambda note: Answer(status))
    send_ping(ME, world.app)
    assert AppRepository.objects.due().exists() == (status == 200)


def test_removed_app_gets_no_ping(world: World) -> None:
    delete_app(ME, world.app)
    with pytest.raises(NotFound, match="App not found"):
        send_ping(ME, world.app)
    assert world.requests() == []


def test_accepted_ping_keeps_a_pause_that_the_app_asked_for(world: World) -> None:
    App.objects.update(cooldown_until=from_now(3600))
    send_ping(ME, world.app)
    assert App.objects.get().cooldown_until is not None


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (302, "doesn't follow redirects"),
        (400, "Only 2xx responses"),
        (401, "rejected the signature"),
        (403, "signing key"),
        (403, "CSRF token"),
        (404, "/ping"),
        (405, "doesn't accept POST"),
        (429, "limits its request rate"),
        (500, "Check its log"),
        (502, "a proxy in front of it"),
        (503, "Check its log"),
        (999, "Only 2xx responses"),
    ],
)
def test_every_other_status_has_a_hint(world: World, status: int, hint: str) -> None:
    world.answer(lambda note: Answer(status, {"why": "Because of that"}))
    ping = send_ping(ME, world.app)
    assert (ping.delivered, ping.status, ping.message) == (False, status, f"The app returned HTTP {status}.")
    assert hint in ping.hint
    assert "Because of that" in ping.body


def test_redirect_hint_names_the_target(world: World) -> None:
    world.answer(lambda note: Answer(308, headers={"Location": "https://new.example/hooks/ping?key=1#a"}))
    assert "The app redirects to https://new.example/hooks/ping. Docora" in send_ping(ME, world.app).hint
    for location in ("", "https://[new.example/"):
        world.answer(lambda note, location=location: Answer(308, headers={"Location": location}))
        assert send_ping(ME, world.app).hint.startswith("Docora doesn't follow redirects.")


def test_410_pauses_the_app(world: World) -> None:
    world.answer(lambda note: Answer(410))
    assert "was paused" in send_ping(ME, world.app).hint
    assert App.objects.get(pk=world.app.pk).paused


def test_wrong_key(world: World) -> None:
    world.receiver.keys = "quite-another-signing-key"
    assert "rejected the signature" in send_ping(ME, world.app).hint


def test_host_name_that_does_not_resolve(world: World) -> None:
    assert "resolve" in ping_to(world, "http://nobody.invalid/hooks").hint


def test_address_that_is_not_allowed(world: World, settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []
    ping = send_ping(ME, world.app)
    assert "loopback" in ping.message
    assert "ALLOWED_PRIVATE_NETWORKS" in ping.hint
    assert ping.seconds == 0.0, "it would show how long internal names take to resolve"


def test_closed_port(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "check the port" in ping_to(world, f"http://127.0.0.1:{port}").hint


def test_server_without_tls(world: World) -> None:
    hint = ping_to(world, world.receiver.url.replace("http:", "https:")).hint
    assert "certificate" in hint
    assert "Check that the port uses TLS" in hint


def test_ping_needs_permission_and_is_logged(world: World) -> None:
    staff("vera", "view_app")
    staff("otto", "view_app", "change_app")
    with pytest.raises(PermissionDenied):
        send_ping(Actor.of_user(User.objects.get(username="vera")), world.app)
    send_ping(Actor.of_user(User.objects.get(username="otto")), world.app)
    assert "Sent a test ping" in by_users().get().message
