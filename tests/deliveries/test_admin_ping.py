"""Test pings, to a real client and to broken or blocked URLs."""

import pytest
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services.keys import start_key_rotation
from tests.support.proxy import Proxy
from tests.support.receiver import Answer
from tests.support.staff import make_app, staff
from tests.support.world import World

APPS = "/admin/deliveries_app/app/"


@pytest.fixture
def client(db) -> Client:
    return staff("paula", "view_app", "change_app", "view_payloads")


def ping(client: Client, app: App, **data: str):
    """Send a ping and return the page with its result."""
    answer = client.post(f"{APPS}{app.pk}/ping/", data)
    assert answer.status_code == 302
    return client.get(answer.url)


def test_success_shows_status_time_and_body(world: World, client: Client) -> None:
    page = ping(client, world.app)
    assert "The app accepted the ping (HTTP 200)." in page.text
    assert "pong" in page.text
    assert " ms</dd>" in page.text
    assert [record.kind for record in world.requests()] == ["ping"]
    client.get(f"{APPS}{world.app.pk}/ping/")  # a refresh of the page sends nothing
    assert len(world.requests()) == 1
    without = ping(staff("pete", "view_app", "change_app"), world.app).text
    assert "pong" not in without
    assert "You don't have permission to view request bodies and responses." in without


def test_refused_signature_shows_a_hint(world: World, client: Client) -> None:
    App.objects.filter(pk=world.app.pk).update(client_auth_key="another key than the client has")
    page = ping(client, world.app)
    assert "The app returned HTTP 401." in page.text
    assert "rotate it" in page.text
    assert "badge-bad" in page.text


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (302, "follow redirects"),
        (404, "no /ping"),
        (500, "Check its log"),
        (418, "Only 2xx responses"),
    ],
)
def test_other_responses_show_a_hint(world: World, client: Client, status: int, expected: str) -> None:
    world.answer(lambda note: Answer(status))
    page = ping(client, world.app)
    assert f"The app returned HTTP {status}." in page.text
    assert expected in page.text


def test_unreachable_url_shows_a_hint(client: Client) -> None:
    app = make_app("Portal")
    App.objects.update(base_url="http://127.0.0.1:9")
    page = ping(client, app)
    assert "Check that the app is running" in page.text
    assert "No response" in page.text


def test_refusal_of_the_egress_proxy_shows_a_hint(client: Client, settings) -> None:
    app = make_app("Portal")
    App.objects.update(base_url="http://portal.example")
    with Proxy({}, status="407 Proxy Authentication Required") as proxy:
        settings.EGRESS_PROXY = proxy.url
        page = ping(client, app).text
    assert "it requires a valid user name and password (HTTP 407)" in page
    assert "An administrator should check EGRESS_PROXY" in page
    assert "Check that the app is running" not in page


def test_blocked_url_shows_a_hint(client: Client) -> None:
    app = make_app("Portal")
    App.objects.update(base_url="https://10.0.0.1")
    page = ping(client, app).text
    assert "ALLOWED_PRIVATE_NETWORKS" in page
    assert "<dt>Duration</dt><dd>—</dd>" in page
    here = client.post(f"{APPS}{app.pk}/ping/", HTTP_HX_REQUEST="true").text
    assert "ALLOWED_PRIVATE_NETWORKS" in here
    assert "0 ms" not in here


def test_response_is_escaped(world: World, client: Client) -> None:
    world.answer(lambda note: Answer(500, {"error": "<script>alert(1)</script>"}))
    page = ping(client, world.app).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_new_key_can_be_pinged_during_a_rotation(world: World, client: Client) -> None:
    own = f"{APPS}{world.app.pk}/settings/"
    assert "Ping with new key" not in client.get(own).text
    start_key_rotation(Actor.system(), world.app, "the-key-that-comes-next")
    assert "Ping with new key" in client.get(own).text
    refused = ping(client, world.app, key="new")
    assert "The app returned HTTP 401." in refused.text
    assert "The new key only" in refused.text
    assert "Give it the new key, then send another ping." in refused.text
    assert "rotate it" not in refused.text
    assert (
        "The app accepted the ping" in ping(client, world.app).text
    )  # with both keys, the old signature is still accepted
    world.app.refresh_from_db()
    assert world.app.new_key_accepted_at is None
    own_ping = f"{APPS}{world.app.pk}/ping/"
    assert "<dd>Both keys</dd>" in client.get(own_ping).text
    App.objects.filter(pk=world.app.pk).update(key_rotation_started_at=None)
    assert "<dd>Both keys</dd>" in client.get(own_ping).text, "the rotation ended after the ping"
    App.objects.filter(pk=world.app.pk).update(key_rotation_started_at=world.app.key_rotation_started_at)
    App.objects.filter(pk=world.app.pk).update(client_auth_key="another key than the client has")
    assert "The app rejected both keys." in ping(client, world.app).text


def test_get_sends_nothing_and_forged_post_is_refused(world: World, client: Client) -> None:
    assert client.get(f"{APPS}{world.app.pk}/ping/").status_code == 200
    viewer = staff("victor", "view_app", "rotate_secret_app")
    assert "/ping/" not in viewer.get(f"{APPS}{world.app.pk}/change/").text
    for method in (viewer.get, viewer.post):
        assert method(f"{APPS}{world.app.pk}/ping/").status_code == 403
    assert world.requests() == []


def test_result_is_shown_for_its_app_only(world: World, client: Client) -> None:
    other = world.add_app("Other")
    ping(client, world.app)
    assert "accepted the ping" not in client.get(f"{APPS}{other.pk}/ping/").text
