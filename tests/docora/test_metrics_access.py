"""Who is told the metrics: whoever has the token, or, where there is none, this machine."""

import ipaddress

import pytest
from django.http import HttpResponse
from django.test import Client

from docora.security.throttle import FAILURES

TOKEN = "a-token-that-only-tests-use"
STRANGER = "203.0.113.9"

pytestmark = pytest.mark.django_db


def ask(address: str = "127.0.0.1", token: str = "", scheme: str = "Bearer", **headers: str) -> HttpResponse:
    given = {"Authorization": f"{scheme} {token}"} if token else {}
    return Client(REMOTE_ADDR=address).get("/metrics", headers=given | headers)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_without_a_token_this_machine_is_told(address: str) -> None:
    answer = ask(address)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.cookies == {}


@pytest.mark.parametrize("address", [STRANGER, "10.0.0.1", "2001:db8::1", "::ffff:203.0.113.9", "", "nonsense"])
def test_without_a_token_nobody_else_is(address: str) -> None:
    answer = ask(address, token=TOKEN)
    assert answer.status_code == 403
    assert answer.json() == {
        "error": "Metrics are told to this machine only: set METRICS_TOKEN to ask from another one"
    }


def test_behind_a_proxy_the_client_counts_and_not_the_proxy(settings) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    assert ask(**{"X-Forwarded-For": STRANGER}).status_code == 403
    assert ask(**{"X-Forwarded-For": f"127.0.0.1, {STRANGER}"}).status_code == 403
    assert ask().status_code == 200


@pytest.mark.parametrize("address", ["127.0.0.1", STRANGER])
def test_with_a_token_it_is_what_counts_from_everywhere(settings, address: str) -> None:
    settings.METRICS_TOKEN = TOKEN
    assert ask(address, token=TOKEN).status_code == 200
    assert ask(address, token=TOKEN, scheme="bearer").status_code == 200
    for answer in (ask(address), ask(address, token=TOKEN + "x"), ask(address, token=TOKEN, scheme="Basic")):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in answer.text
    assert ask(address, token="tökén").status_code == 401


def test_guessing_the_token_is_slowed_down_and_the_right_one_is_not(settings) -> None:
    settings.METRICS_TOKEN = TOKEN
    for _ in range(FAILURES):
        assert ask(STRANGER, token="wrong").status_code == 401
    assert ask(STRANGER, token="wrong").status_code == 429
    assert ask(STRANGER, token=TOKEN).status_code == 200


def test_with_a_token_it_is_told_by_whatever_name_and_without_one_by_ours_only(settings) -> None:
    settings.PUBLIC_URL, settings.ALLOWED_HOSTS = "https://docora.example", ["docora.example", "127.0.0.1"]
    assert ask(Host="127.0.0.1:8000").status_code == 200
    assert ask(Host="rebound.example").status_code == 400
    settings.METRICS_TOKEN = TOKEN
    assert ask(STRANGER, token=TOKEN, Host="10.1.2.3:8000").status_code == 200


def test_it_is_not_redirected_to_https(settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert ask().status_code == 200


def test_it_is_only_read() -> None:
    assert Client().head("/metrics").status_code == 200
    answer = Client().post("/metrics")
    assert answer.status_code == 405
    assert answer.json() == {"error": "POST is not possible here: use GET, HEAD"}
