"""Failed authentication, and nothing else, is throttled per address."""

import pytest
from django.test import Client

from docora.security.throttle import FAILURES, SECONDS
from tests.api.caller import Caller, error_of
from tests.support.staff import make_app

HOOK = "/api/hooks/push/repo_" + "0" * 24


def fail(path: str = "/api/repositories", address: str = "203.0.113.9"):
    verb = Client(REMOTE_ADDR=address)
    return verb.post(path) if path == HOOK else verb.get(path)


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/api/repositories", HOOK])
def test_repeated_failures_from_one_address_are_throttled(path: str) -> None:
    for _ in range(FAILURES):
        error_of(fail(path), 401)
    answer = fail(path)
    wait = int(answer.headers["Retry-After"])
    assert 0 < wait <= SECONDS
    assert f"wait {wait} seconds" in error_of(answer, 429)


@pytest.mark.django_db
def test_valid_token_is_never_throttled() -> None:
    caller = Caller(make_app("Portal"))
    for _ in range(FAILURES + 2):
        fail()
    assert caller.get().status_code == 200


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("203.0.113.9", "203.0.113.10", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.10", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("nonsense", "more nonsense", True),
    ],
)
def test_ipv6_addresses_of_one_network_count_together(first: str, second: str, together: bool) -> None:
    for _ in range(FAILURES):
        fail(address=first)
    assert fail(address=second).status_code == (429 if together else 401)


def test_limit_resets_after_the_window(redis_client) -> None:
    for _ in range(FAILURES + 1):
        fail()
    (key,) = redis_client.keys("docora:failures:*")
    assert 0 < redis_client.ttl(key) <= SECONDS
    redis_client.expire(key, 10)
    fail()
    assert redis_client.ttl(key) <= 10  # another failure does not extend it
    redis_client.delete(key)  # as the key's TTL does
    error_of(fail(), 401)


def test_no_throttle_without_redis(valkey_server) -> None:
    valkey_server.stop()
    for _ in range(FAILURES + 1):
        error_of(fail(), 401)
