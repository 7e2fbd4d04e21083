"""Send test ping in the admin: to a real client, and to addresses where nothing good answers."""

import pytest
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services.keys import start_key_rotation
from tests.support.receiver import Answer
from tests.support.staff import make_app, staff
from tests.support.world import World

APPS = "/admin/deliveries_app/app/"


@pytest.fixture
def client(db) -> Client:
    return staff("paula", "view_app", "change_app")


def ping(client: Client, app: App, **data: str):
    """The page that shows what came of it."""
    answer = client.post(f"{APPS}{app.pk}/ping/", data)
    assert answer.status_code == 302
    return client.get(answer.url)


def test_a_good_answer_is_shown_with_its_status_time_and_body(world: World, client: Client) -> None:
    page = ping(client, world.app)
    assert "The app accepted the ping: it answered 200." in page.text
    assert "pong" in page.text
    assert " ms</dd>" in page.text
    assert [record.kind for record in world.requests()] == ["ping"]
    client.get(f"{APPS}{world.app.pk}/ping/")  # a refresh of the page sends nothing
    assert len(world.requests()) == 1


def test_a_refused_signature_is_told_with_what_to_do(world: World, client: Client) -> None:
    App.objects.filter(pk=world.app.pk).update(client_auth_key="another key than the client has")
    page = ping(client, world.app)
    assert "The app answered 401." in page.text
    assert "rotate the key" in page.text
    assert "badge-bad" in page.text


@pytest.mark.parametrize(
    ("status", "words"),
    [(302, "redirects are not followed"), (404, "no /ping"), (500, "its log has the cause"), (418, "not with 2xx")],
)
def test_other_answers_are_told_with_what_to_do(world: World, client: Client, status: int, words: str) -> None:
    world.answer(lambda note: Answer(status))
    page = ping(client, world.app)
    assert f"The app answered {status}." in page.text
    assert words in page.text


def test_an_address_where_nobody_answers_is_told_with_what_to_do(client: Client) -> None:
    app = make_app("Portal")
    App.objects.update(base_url="http://127.0.0.1:9")
    page = ping(client, app)
    assert "Nobody accepts connections there" in page.text
    assert "no answer" in page.text


def test_an_address_that_may_not_be_called_is_told_with_what_to_do(client: Client) -> None:
    app = make_app("Portal")
    App.objects.update(base_url="https://10.0.0.1")
    assert "ALLOWED_PRIVATE_NETWORKS" in ping(client, app).text


def test_what_the_app_answers_is_shown_as_text(world: World, client: Client) -> None:
    world.answer(lambda note: Answer(500, {"error": "<script>alert(1)</script>"}))
    page = ping(client, world.app).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_during_a_rotation_the_new_key_can_be_tried_alone(world: World, client: Client) -> None:
    own = f"{APPS}{world.app.pk}/change/"
    assert "Ping with the new key" not in client.get(own).text
    start_key_rotation(Actor.system(), world.app, "the-key-that-comes-next")
    assert "Ping with the new key" in client.get(own).text
    refused = ping(client, world.app, key="new")
    assert "The app answered 401." in refused.text
    assert "the new key alone" in refused.text
    assert "The app accepted the ping" in ping(client, world.app).text  # with both keys the old one still does
    world.app.refresh_from_db()
    assert world.app.new_key_accepted_at is None


def test_looking_sends_nothing_and_a_forged_post_is_refused(world: World, client: Client) -> None:
    assert client.get(f"{APPS}{world.app.pk}/ping/").status_code == 200
    viewer = staff("victor", "view_app", "rotate_secret_app")
    assert "/ping/" not in viewer.get(f"{APPS}{world.app.pk}/change/").text
    for method in (viewer.get, viewer.post):
        assert method(f"{APPS}{world.app.pk}/ping/").status_code == 403
    assert world.requests() == []


def test_the_result_of_one_app_is_not_shown_at_another(world: World, client: Client) -> None:
    other = world.add_app("Other")
    ping(client, world.app)
    assert "accepted the ping" not in client.get(f"{APPS}{other.pk}/ping/").text
