"""Trusted proxies, probes and error responses."""

import ipaddress
import time

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from docora.web.errors import NOT_FOUND
from docora.web.middleware import TrustedProxyMiddleware

CLIENT, PROXY, INNER = "203.0.113.9", "10.0.0.1", "10.0.0.2"


def seen_by_django(remote: str, forwarded_for: str = "", proto: str = "") -> tuple[str, str]:
    """Return the address and scheme that a view sees."""
    headers = {"HTTP_X_FORWARDED_FOR": forwarded_for, "HTTP_X_FORWARDED_PROTO": proto}
    request = RequestFactory().get("/", REMOTE_ADDR=remote, **headers)
    found: list[HttpRequest] = []
    TrustedProxyMiddleware(lambda request: found.append(request) or HttpResponse())(request)
    assert "HTTP_X_FORWARDED_FOR" not in found[0].META
    return found[0].META["REMOTE_ADDR"], found[0].scheme


@pytest.mark.parametrize(
    ("remote", "forwarded_for", "proto", "expected"),
    [
        (CLIENT, "", "", (CLIENT, "http")),
        (CLIENT, "198.51.100.1", "https", (CLIENT, "http")),  # not a trusted proxy
        (PROXY, CLIENT, "https", (CLIENT, "https")),
        (PROXY, f"{CLIENT}, {INNER}", "https", (CLIENT, "https")),
        (PROXY, f"{CLIENT}, {INNER}", "https,https", (CLIENT, "https")),  # the proxies have added a value each
        (PROXY, f"{CLIENT}, {INNER}", "https, http", (CLIENT, "https")),
        (PROXY, f"{CLIENT}, {INNER}", "HTTPS , http", (CLIENT, "https")),
        (PROXY, f"{CLIENT}, {INNER}", "http, https", (CLIENT, "http")),
        (PROXY, f"1.2.3.4, {CLIENT}", "http", (CLIENT, "http")),  # the client sent the first address itself
        (PROXY, "nonsense", "", ("nonsense", "http")),
        (PROXY, f"{CLIENT}:51234", "", (CLIENT, "http")),
        (PROXY, "[2001:db8::1]:51234", "", ("2001:db8::1", "http")),
        (PROXY, f"{CLIENT}:1, {INNER}:2", "", (CLIENT, "http")),
        (PROXY, "", "", (PROXY, "http")),
        (f"::ffff:{PROXY}", CLIENT, "https", (CLIENT, "https")),  # a socket that accepts both IPv4 and IPv6
    ],
)
def test_forwarded_headers_from_trusted_proxies(
    settings, remote: str, forwarded_for: str, proto: str, expected: tuple[str, str]
) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    assert seen_by_django(remote, forwarded_for, proto) == expected


def test_forwarded_headers_are_ignored_without_trusted_proxies() -> None:
    assert seen_by_django(PROXY, CLIENT, "https") == (PROXY, "http")


@pytest.mark.parametrize(
    ("is_https", "trusted", "proto", "addresses"),
    [
        (True, "192.0.2.0/24", "https", [PROXY]),  # redirected to https in a loop
        (True, "10.0.0.0/8", "https", []),
        (True, "192.0.2.0/24", "", []),  # not a proxy
        (False, "192.0.2.0/24", "https", []),  # nothing is redirected
    ],
)
def test_untrusted_proxy_is_logged_once_an_hour(
    settings, caplog, monkeypatch: pytest.MonkeyPatch, is_https: bool, trusted: str, proto: str, addresses: list[str]
) -> None:
    settings.SECURE_SSL_REDIRECT = is_https
    settings.TRUSTED_PROXIES = [ipaddress.ip_network(trusted)]
    middleware = TrustedProxyMiddleware(lambda request: HttpResponse())

    def logged_after_a_request() -> list[str]:
        middleware(RequestFactory().get("/", REMOTE_ADDR=PROXY, HTTP_X_FORWARDED_PROTO=proto))
        return [record.address for record in caplog.records if record.getMessage() == "proxy_not_trusted"]

    assert logged_after_a_request() == addresses
    assert logged_after_a_request() == addresses
    later = time.monotonic() + 3600
    monkeypatch.setattr("docora.web.middleware.time.monotonic", lambda: later)
    assert logged_after_a_request() == 2 * addresses


def test_health_and_version_are_public(client: Client) -> None:
    health = client.get("/health").json()
    assert set(health) == {"timestamp", "uptime"}
    assert health["timestamp"].endswith("Z")
    assert set(client.get("/version").json()) == {"version", "buildNumber", "gitSha", "buildDate"}
    assert client.post("/health").status_code == 405


def test_health_is_not_redirected_to_https(client: Client, settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    assert client.get("/health").status_code == 200
    for answer in (client.get("/admin/login/"), client.post("/admin/login/")):
        assert (answer.status_code, answer["Location"]) == (301, "https://testserver/admin/login/")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_api_call_over_plain_http_is_refused_instead_of_redirected(client: Client, settings, method: str) -> None:
    settings.SECURE_SSL_REDIRECT, settings.PUBLIC_URL = True, "https://docora.example"
    for path in ("/api/repositories", "/admin/api/resync"):
        answer = client.generic(method, path, b"{}", content_type="application/json")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "https://docora.example" in answer.json()["error"]
    assert client.generic(method, "/api/repositories", secure=True).status_code in {401, 405}
    assert client.get("/api/repositories").status_code == client.head("/api/repositories").status_code == 301


def test_not_found_is_json_below_the_api_and_a_page_elsewhere(client: Client) -> None:
    assert client.get("/api/nothing").json()["error"] == NOT_FOUND
    assert client.get("/admin/api/nothing").json()["error"] == NOT_FOUND
    page = client.get("/nothing")
    assert page.status_code == 404
    assert page.headers["Content-Type"].startswith("text/html")


def test_root_redirects_to_the_admin(client: Client) -> None:
    assert client.get("/").url == "/admin/"


def test_api_call_with_a_disallowed_host(client: Client) -> None:
    answer = client.get("/api/repositories", headers={"host": "evil.example"})
    assert answer.status_code == 400
    assert answer.json()["error"] == "Bad request: check the hostname, the URL and the headers"


@pytest.mark.parametrize("path", ["/admin/", "/accounts/login/", "/accounts/link/x/"])
def test_page_with_a_disallowed_host(client: Client, path: str) -> None:
    """It is refused before its user is known. With 500, strangers could set off the alerts for server errors."""
    client.raise_request_exception = False
    assert client.get(path, headers={"host": "evil.example"}).status_code == 400
