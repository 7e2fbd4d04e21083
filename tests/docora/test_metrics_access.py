"""Access to the metrics: with METRICS_TOKEN, or without one from this machine only."""

import ipaddress

import pytest
from django.http import HttpResponse
from django.test import Client

from docora.security.throttle import FAILURES

TOKEN = "a-token-that-only-tests-use"
REMOTE = "203.0.113.9"

pytestmark = pytest.mark.django_db


def ask(address: str = "127.0.0.1", token: str = "", scheme: str = "Bearer", **headers: str) -> HttpResponse:
    given = {"Authorization": f"{scheme} {token}"} if token else {}
    return Client(REMOTE_ADDR=address).get("/metrics", headers=given | headers)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_without_a_token_local_clients_are_allowed(address: str) -> None:
    answer = ask(address)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.cookies == {}


@pytest.mark.parametrize("address", [REMOTE, "10.0.0.1", "2001:db8::1", "::ffff:203.0.113.9", "", "nonsense"])
def test_without_a_token_other_clients_are_denied(address: str) -> None:
    answer = ask(address, token=TOKEN)
    assert answer.status_code == 403
    message = "Metrics are only served to this machine: set METRICS_TOKEN to read them from another one"
    assert answer.json()["error"] == message


def test_behind_a_proxy_the_client_address_counts(settings) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    assert ask(**{"X-Forwarded-For": REMOTE}).status_code == 403
    assert ask(**{"X-Forwarded-For": f"127.0.0.1, {REMOTE}"}).status_code == 403
    assert ask().status_code == 200


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Forwarded-Proto", "X-Forwarded-Host"])
def test_without_a_token_forwarded_requests_are_denied(settings, name: str) -> None:
    """A reverse proxy on this machine that is not in TRUSTED_PROXIES connects from this machine."""
    assert ask(**{name: "127.0.0.1"}).status_code == 403
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    assert ask(**{name: "127.0.0.1"}).status_code == 403
    settings.METRICS_TOKEN = TOKEN
    assert ask(token=TOKEN, **{name: "127.0.0.1"}).status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", REMOTE])
def test_token_is_required_from_everywhere(settings, address: str) -> None:
    settings.METRICS_TOKEN = TOKEN
    assert ask(address, token=TOKEN).status_code == 200
    assert ask(address, token=TOKEN, scheme="bearer").status_code == 200
    for answer in (ask(address), ask(address, token=TOKEN + "x"), ask(address, token=TOKEN, scheme="Basic")):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in answer.text
    assert ask(address, token="tökén").status_code == 401


def test_guessing_is_throttled_but_the_right_token_is_not(settings) -> None:
    settings.METRICS_TOKEN = TOKEN
    for _ in range(FAILURES):
        assert ask(REMOTE, token="wrong").status_code == 401
    assert ask(REMOTE, token="wrong").status_code == 429
    assert ask(REMOTE, token=TOKEN).status_code == 200


def test_host_header_is_checked_only_without_a_token(settings) -> None:
    settings.PUBLIC_URL, settings.ALLOWED_HOSTS = "https://docora.example", ["docora.example", "127.0.0.1"]
    assert ask(Host="127.0.0.1:8000").status_code == 200
    assert ask(Host="rebound.example").status_code == 400
    settings.METRICS_TOKEN = TOKEN
    assert ask(REMOTE, token=TOKEN, Host="10.1.2.3:8000").status_code == 200


def test_no_redirect_to_https(settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert ask().status_code == 200


def test_only_get_and_head_are_allowed() -> None:
    assert Client().head("/metrics").status_code == 200
    answer = Client().post("/metrics")
    assert answer.status_code == 405
    assert answer.json()["error"] == "POST is not allowed here: use GET, HEAD"
