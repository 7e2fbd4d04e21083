"""An app changes its own settings, tests its endpoint and rotates its key. Everything is audited."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.exceptions import PermissionDenied
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AuditEntry
from deliveries_app.services import change_app
from deliveries_app.services.keys import start_key_rotation
from docora.db.clock import from_now
from tests.api.caller import Caller, code_of, error_of
from tests.support.audit import by_apps, messages
from tests.support.receiver import Answer
from tests.support.staff import staff
from tests.support.world import World

URL = "/api/app"


def patch(caller: Caller, **settings: object):
    return caller.client.patch(URL, json.dumps(settings), content_type="application/json")


def post(caller: Caller, path: str, body: object = None):
    return caller.client.post(URL + path, json.dumps({} if body is None else body), content_type="application/json")


_ADMINISTRATORS = "The field base_url can only be changed by an administrator"


def actions(app: App) -> list[str]:
    return messages(by_apps(app_id=app.app_id))


def test_app_sees_its_settings(portal: Caller) -> None:
    app = portal.app
    assert portal.client.get(URL).json() == {
        "app_id": app.app_id,
        "name": "Portal",
        "base_url": app.base_url,
        "paused": False,
        "paused_reason": None,
        "max_in_flight": 8,
        "max_in_flight_limit": 8,
        "send_sync_completed": False,
        "answers_verify": False,
        "on_hold_until": None,
        "key_rotation": None,
        "quotas": {
            "watches": {"used": 2, "limit": None},
            "files": {"used": 200, "limit": None},
            "bytes": {"used": 10_000, "limit": None},
            "resyncs_per_hour": {"used": 0, "limit": None},
        },
    }


def test_pause_and_resume(world: World, caller: Caller) -> None:
    _, watch = world.watch({"a": b"1"})
    body = patch(caller, paused=True).json()
    assert (body["paused"], body["paused_reason"]) == (True, "Paused by the app.")
    world.sync(watch)
    assert world.requests() == []
    assert patch(caller, paused=True).status_code == 200  # nothing changes
    assert patch(caller, paused=False).json()["paused"] is False
    world.settle()
    assert len(world.requests("create")) == 1
    assert actions(caller.app) == ["Paused", "Resumed"]
    assert by_apps().latest("pk").address == "203.0.113.9"


def test_resuming_ends_a_hold_and_the_apps_own_test_ping_does_not(world: World, caller: Caller) -> None:
    """The references say so."""
    until = from_now(1800)
    App.objects.update(cooldown_until=until, down_count=9)  # the endpoint was down for hours
    assert post(caller, "/ping").json()["delivered"]
    assert caller.client.get(URL).json()["on_hold_until"]
    App.objects.update(cooldown_until=from_now(-60))
    assert caller.client.get(URL).json()["on_hold_until"] is None
    App.objects.update(cooldown_until=until)
    patch(caller, paused=True)
    assert patch(caller, paused=False).json()["on_hold_until"] is None
    for page in ("/docs/webhooks/", "/docs/api/"):
        assert "app requests does not end it" in caller.client.get(page).text, page
    assert "asked for ends early if the app is paused and resumed." in caller.client.get("/docs/operations/").text


def test_administrator_takes_over_the_pause_of_an_app(portal: Caller) -> None:
    assert patch(portal, paused=True).status_code == 200
    app = App.objects.get(pk=portal.app.pk)
    change_app(Actor.command(), app, ["paused"])
    assert patch(portal, paused=False).status_code == 409
    assert messages(AuditEntry.objects.order_by("pk"))[-1] == "Paused. Until then: Paused by the app."


def test_app_cannot_resume_what_an_administrator_has_paused(portal: Caller) -> None:
    app = App.objects.get(pk=portal.app.pk)
    app.paused = True
    change_app(Actor.command(), app, ["paused"])
    answer = patch(portal, paused=False, send_sync_completed=True)
    assert code_of(answer, 409) == "paused_by_administrator"
    app.refresh_from_db()
    assert (app.paused, app.send_sync_completed) == (True, False)
    assert actions(app) == []


def test_app_resumes_after_a_410(world: World, caller: Caller) -> None:
    world.answer(lambda note: Answer(410))
    post(caller, "/ping")
    assert caller.client.get(URL).json()["paused"] is True
    assert patch(caller, paused=False).json()["paused"] is False


def test_concurrency_stays_within_the_administrator_s_limit(portal: Caller) -> None:
    assert error_of(patch(portal, max_in_flight=9), 422) == (
        "max_in_flight must be between 1 and 8, the administrator's limit"
    )
    body = patch(portal, max_in_flight=3).json()
    assert (body["max_in_flight"], body["max_in_flight_limit"]) == (3, 8)
    body = patch(portal, max_in_flight=8).json()
    assert (body["max_in_flight"], body["max_in_flight_limit"]) == (8, 8)
    assert App.objects.get(pk=portal.app.pk).in_flight_limit is None
    assert actions(portal.app) == ["Concurrent requests: 8 → 3", "Concurrent requests: 3 → 8"]


@pytest.mark.parametrize(("limit", "expected"), [(16, (3, 16)), (3, (3, 3)), (2, (2, 2))])
def test_administrator_changes_the_limit_and_the_app_keeps_its_choice(
    portal: Caller, limit: int, expected: tuple[int, int]
) -> None:
    patch(portal, max_in_flight=3)
    editor = staff("paula", "view_app", "change_app")
    page = f"/admin/deliveries_app/app/{portal.app.pk}/settings/"
    form = editor.get(page).context["adminform"].form
    assert form["max_in_flight"].value() == 8
    data = {name: form[name].value() or "" for name in form.fields} | {"max_in_flight": limit, "paused": ""}
    assert editor.post(page, data).status_code == 302
    body = portal.client.get(URL).json()
    assert (body["max_in_flight"], body["max_in_flight_limit"]) == expected


def test_optional_events_are_switched(portal: Caller) -> None:
    assert patch(portal, send_sync_completed=True).json()["send_sync_completed"] is True
    assert patch(portal, answers_verify=True).json()["answers_verify"] is True
    assert actions(portal.app) == ["Send sync_completed: no → yes", "Check for differences: no → yes"]


def test_unknown_and_malformed_settings_are_422(portal: Caller) -> None:
    assert error_of(patch(portal, base_url="https://evil.example"), 422) == _ADMINISTRATORS
    assert error_of(patch(portal, base_url=None), 422) == _ADMINISTRATORS
    assert error_of(patch(portal, website="https://evil.example"), 422) == "The field website is not known"
    with pytest.raises(PermissionDenied):
        change_app(Actor.of_app(portal.app), portal.app, ["base_url"])
    assert error_of(patch(portal, paused="yes"), 422) == "The field paused must be true or false"
    assert error_of(patch(portal, max_in_flight=0), 422) == "The field max_in_flight must be at least 1"


def test_ping_tells_the_result(world: World, caller: Caller) -> None:
    before = time.monotonic()
    body = post(caller, "/ping").json()
    assert 0 < body["milliseconds"] < 1000 * (time.monotonic() - before)
    assert (body["delivered"], body["status"], body["message"]) == (True, 200, "The app accepted the ping (HTTP 200).")
    (record,) = world.requests()
    assert (record.kind, record.reason) == ("ping", "ping")
    world.answer(lambda note: Answer(500))
    body = post(caller, "/ping").json()
    assert (body["delivered"], body["status"]) == (False, 500)
    assert body["hint"]


@pytest.mark.django_db(transaction=True)
def test_one_ping_of_an_app_at_a_time(world: World, caller: Caller) -> None:
    """A ping waits for the app. Otherwise an app that hangs could occupy every thread of the web process."""
    arrived, release = threading.Event(), threading.Event()

    def hang(note) -> None:
        arrived.set()
        release.wait(20)

    world.answer(hang)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, caller, "/ping")
        assert arrived.wait(20)
        assert code_of(post(caller, "/ping"), 429) == "too_many_requests"
        release.set()
        assert first.result(20).json()["delivered"] is True


def test_key_rotation_from_start_to_end(world: World, caller: Caller) -> None:
    started = post(caller, "/key")
    assert started.status_code == 201
    new_key = started.json()["key"]
    assert code_of(post(caller, "/key"), 409) == "key_rotation"
    assert code_of(post(caller, "/key/retire"), 409) == "key_rotation"  # the app has not accepted the new key
    assert caller.client.get(URL).json()["key_rotation"]["new_key_accepted_at"] is None
    world.receiver.keys = new_key
    assert post(caller, "/ping", {"new_key": True}).json()["delivered"] is True
    assert actions(caller.app)[-1].startswith("Sent a test ping with the new key:")
    assert caller.client.get(URL).json()["key_rotation"]["new_key_accepted_at"]
    assert post(caller, "/key/retire").status_code == 204
    assert App.objects.get(pk=caller.app.pk).client_auth_key == new_key
    assert caller.client.get(URL).json()["key_rotation"] is None
    assert actions(caller.app)[-1] == "Retired the old signing key"
    sent = len(world.requests())
    assert code_of(post(caller, "/ping", {"new_key": True}), 409) == "key_rotation"
    assert len(world.requests()) == sent


def test_own_key_is_accepted_and_can_be_discarded(portal: Caller) -> None:
    chosen = {"key": "whsec_" + "A" * 22 + "=="}
    assert post(portal, "/key", chosen).json() == chosen
    assert portal.client.delete(f"{URL}/key").status_code == 204
    assert code_of(portal.client.delete(f"{URL}/key"), 409) == "key_rotation"


@pytest.mark.parametrize(
    "key", ["short", "whsec_not base64 at all", "whsec_c2hvcnQ=", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2L"]
)
def test_key_that_no_library_can_use_is_422(portal: Caller, key: str) -> None:
    assert code_of(post(portal, "/key", {"key": key}), 422) == "invalid_request"


def test_rotation_started_in_the_admin_is_visible(portal: Caller) -> None:
    start_key_rotation(Actor.command(), portal.app)
    assert portal.client.get(URL).json()["key_rotation"]["started_at"]
    assert actions(portal.app) == []


def test_settings_need_a_token(client: Client) -> None:
    for method, path in (("get", ""), ("patch", ""), ("post", "/ping"), ("post", "/key"), ("delete", "/key")):
        assert code_of(getattr(client, method)(URL + path), 401) == "unauthorized"


def test_push_secret_works_at_once(portal: Caller, watches) -> None:
    answer = portal.post(f"/{watches[0].repository.repository_id}/push-secret")
    assert answer.status_code == 201
    watches[0].refresh_from_db()
    assert answer.json()["secret"] == watches[0].push_secret
    assert answer.json()["url"].endswith(f"/api/hooks/push/{watches[0].repository.repository_id}")
    assert actions(portal.app) == ["Created a new push hook secret"]


def test_audit_log_in_the_admin_shows_what_the_app_did(portal: Caller, watches) -> None:
    patch(portal, paused=True)
    portal.post(f"/{watches[0].repository.repository_id}/push-secret")
    viewer = staff("victor", "view_app", "view_apprepository")
    page = viewer.get(f"/admin/deliveries_app/app/{portal.app.pk}/history/").text
    assert "app Portal" in page
    assert "203.0.113.9" in page
    assert "Paused" in page
    page = viewer.get(f"/admin/deliveries_app/apprepository/{watches[0].pk}/history/").text
    assert "Created a new push hook secret" in page
    assert "Paused" not in page
    page = viewer.get(f"/admin/deliveries_app/apprepository/{watches[1].pk}/history/").text
    assert "No entries in the audit log." in page
