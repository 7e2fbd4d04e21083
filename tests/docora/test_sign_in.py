"""Sign-in throttling: two limits, a temporary lock, and no passwords stored."""

import ipaddress
from datetime import timedelta

import pytest
from axes.models import AccessAttempt, AccessLog
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone

from docora.security.sign_in import client_address
from tests.support.staff import staff

PASSWORD, WRONG = "correct horse battery", "wr0ng-password-of-anna"
LOGIN, LIST = "/admin/login/", "/admin/axes/accessattempt/"


@pytest.fixture
def anna(db) -> User:
    return User.objects.create_superuser("anna", password=PASSWORD)


def try_to_sign_in(
    password: str = WRONG, name: str = "anna", address: str = "203.0.113.9", agent: str = "A"
) -> HttpResponse:
    fields = {"username": name, "password": password, "next": "/admin/", "note": "s3cret-note"}
    return Client(REMOTE_ADDR=address, headers={"user-agent": agent}).post(LOGIN, fields)


def fail(times: int, **fields) -> list[int]:
    return [try_to_sign_in(**fields).status_code for _ in range(times)]


def wait(minutes: float) -> None:
    """Move all attempts into the past."""
    for attempt in AccessAttempt.objects.all():
        earlier = attempt.attempt_time - timedelta(minutes=minutes)
        AccessAttempt.objects.filter(pk=attempt.pk).update(attempt_time=earlier)


def test_fifth_failure_locks_a_name_from_an_address(anna) -> None:
    assert fail(5) == [200, 200, 200, 200, 429]
    page = try_to_sign_in(PASSWORD)
    assert page.status_code == 429, "the right password too"
    assert page["Retry-After"] == "900"
    assert "Too many failed sign-in attempts. Try again in 15 minutes" in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    assert try_to_sign_in(PASSWORD, address="203.0.113.10").status_code == 302, "from elsewhere"


def test_other_names_from_the_same_address_can_sign_in(anna) -> None:
    User.objects.create_user("otto", password=PASSWORD, is_staff=True)
    fail(5)
    assert try_to_sign_in(PASSWORD, name="otto").status_code == 302


@pytest.mark.parametrize("length", [151, 256, 100_000])
def test_name_that_is_too_long_is_counted_and_not_hashed(anna, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(User, "set_password", lambda self, password: hashed.append(password))
    assert fail(5, name="x" * length) == [200, 200, 200, 200, 429]
    assert hashed == []
    assert AccessAttempt.objects.get().failures_since_start == 5
    assert try_to_sign_in(name="y" * length).status_code == 429
    assert try_to_sign_in(PASSWORD).status_code == 302


def test_sign_in_without_a_next_page_leads_to_the_overview(anna) -> None:
    answer = Client().post(LOGIN, {"username": "anna", "password": PASSWORD})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


def test_lock_applies_to_all_browsers(anna) -> None:
    statuses = [try_to_sign_in(agent=f"Browser {number}").status_code for number in range(5)]
    assert statuses[-1] == 429


def test_failures_under_many_names_lock_the_address(anna) -> None:
    statuses = [try_to_sign_in(name=f"guess-{number}").status_code for number in range(50)]
    assert statuses == [200] * 49 + [429]
    assert try_to_sign_in(PASSWORD).status_code == 429
    assert try_to_sign_in(PASSWORD, address="203.0.113.10").status_code == 302


def test_attempts_while_locked_do_not_extend_the_lock(anna) -> None:
    fail(5)
    wait(14)
    assert fail(3) == [429, 429, 429]
    wait(1.1)
    assert fail(1) == [200], "counted from one again"
    assert try_to_sign_in(PASSWORD).status_code == 302


def test_success_clears_the_failures_of_that_name_only(anna) -> None:
    fail(4)
    fail(3, name="otto")
    assert try_to_sign_in(PASSWORD).status_code == 302
    assert fail(4) == [200, 200, 200, 200]
    assert AccessAttempt.objects.get(username="otto").failures_since_start == 3


def test_neither_form_data_nor_successes_are_stored(anna) -> None:
    fail(3)
    try_to_sign_in(PASSWORD, address="203.0.113.10")
    attempt = AccessAttempt.objects.get()
    assert attempt.failures_since_start == 3
    kept = " ".join(str(value) for value in AccessAttempt.objects.values().get().values())
    assert "s3cret-note" not in kept
    assert WRONG not in kept
    assert (attempt.get_data, attempt.post_data) == ("", "")
    assert not AccessLog.objects.exists()


@pytest.mark.parametrize(
    ("remote", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("", None),
        ("nonsense", None),
    ],
)
def test_ipv6_clients_are_identified_by_their_network(remote: str, counted: str | None) -> None:
    assert client_address(RequestFactory().get("/", REMOTE_ADDR=remote)) == counted


def test_client_address_behind_a_trusted_proxy(anna, settings) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.1/32")]
    for _ in range(5):
        Client(REMOTE_ADDR="10.0.0.1", headers={"x-forwarded-for": "203.0.113.9"}).post(
            LOGIN, {"username": "anna", "password": WRONG}
        )
    assert AccessAttempt.objects.get().ip_address == "203.0.113.9"
    assert try_to_sign_in(PASSWORD, address="10.0.0.1").status_code == 302


def test_sign_in_without_a_client_address(anna) -> None:
    assert fail(2, address="") == [200, 200]
    assert try_to_sign_in(PASSWORD, address="").status_code == 302


def test_superuser_unlocks_by_deleting_an_attempt(anna) -> None:
    fail(5)
    client = Client()
    client.force_login(anna)
    assert "Sign-in attempts" in client.get("/admin/").content.decode()
    page = client.get(LIST)
    assert page.context["title"] == "Sign-in attempts"
    assert "203.0.113.9" in page.content.decode()
    attempt = AccessAttempt.objects.get()
    assert client.get(f"{LIST}{attempt.pk}/change/").status_code == 200
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{attempt.pk}/delete/", {"post": "yes"}).status_code == 302
    assert try_to_sign_in(PASSWORD).status_code == 302


def test_attempts_are_hidden_from_other_staff(anna) -> None:
    codenames = Permission.objects.filter(content_type__app_label="axes").values_list("codename", flat=True)
    client = staff("victor", *codenames)
    fail(1)
    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{AccessAttempt.objects.get().pk}/change/").status_code == 403
    assert "Sign-in attempts" not in client.get("/admin/").content.decode()


@pytest.mark.parametrize("model", ["accesslog", "accessfailurelog"])
def test_other_axes_models_have_no_page(anna, model: str) -> None:
    client = Client()
    client.force_login(anna)
    assert client.get(f"/admin/axes/{model}/").status_code == 404


def test_old_attempt_is_not_shown_as_locked(anna, rf) -> None:
    fail(5)
    page = admin.site.get_model_admin(AccessAttempt)
    attempt = AccessAttempt.objects.get()
    assert page.locked(attempt)
    attempt.attempt_time = timezone.now() - timedelta(minutes=16)
    assert not page.locked(attempt)


def test_anonymous_json_call_is_not_counted(db) -> None:
    answer = Client().post("/admin/api/resync", content_type="application/json", data={})
    assert answer.status_code == 401
    assert not AccessAttempt.objects.exists()


def test_old_attempts_are_deleted(anna) -> None:
    fail(2, name="somebody")
    wait(minutes=31 * 24 * 60)
    fail(1)
    assert list(AccessAttempt.objects.values_list("username", flat=True)) == ["anna"]
