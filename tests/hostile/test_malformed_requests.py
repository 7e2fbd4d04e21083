"""Requests with two things wrong at once, from a stranger: none is a server error, which would set off an alert."""

from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from django.test import Client

COOKIE = f"csrftoken={'a' * 32}"
"""With it, Django looks for the CSRF token in the form."""


@dataclass(frozen=True)
class Anomaly:
    """What is wrong with a request: what to send instead of a POST of an empty form without a query."""

    name: str
    method: str = ""
    query: str = ""
    body: bytes = b""
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)


ANOMALIES = [
    Anomaly("method GET", method="GET"),
    Anomaly("method PUT", method="PUT"),
    Anomaly("unknown method", method="BREW"),
    Anomaly("NUL in the query", query="q=%00"),
    Anomaly("invalid UTF-8 in the query", query="q=%ff&next=%c3%28"),
    Anomaly("address of another site to return to", query="next=//other.example/"),
    Anomaly("huge number", query=f"id={'9' * 40}&page={'9' * 40}"),
    Anomaly("form without a boundary", content_type="multipart/form-data; boundary=", body=b"x"),
    Anomaly("boundary that isn't ASCII", content_type="multipart/form-data; boundary\x92=x", body=b"x"),
    Anomaly("unfinished file", content_type="multipart/form-data; boundary=x", body=b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nc'),
    Anomaly("too many fields", content_type="application/x-www-form-urlencoded", body=b"a=b&" * 1001),
    Anomaly("invalid UTF-8 in a field", content_type="application/x-www-form-urlencoded", body=b"username=%ff&password=%00"),
    Anomaly("unknown character set", content_type="application/x-www-form-urlencoded; charset=utf-99", body=b"a=b"),
    Anomaly("unfinished JSON", content_type="application/json", body=b'{"github_url":'),
    Anomaly("JSON with a lone surrogate", content_type="application/json", body=b'{"github_url": "\\ud800"}'),
    Anomaly("another host", headers={"Host": "other.example"}),
    Anomaly("invalid host", headers={"Host": "[::1"}),
    Anomaly("invalid referrer", headers={"Referer": "http://[invalid/"}),
    Anomaly("invalid origin", headers={"Origin": "http://[invalid/"}),
    Anomaly("poll of an invalid page", headers={"HX-Request": "true", "HX-Current-URL": "http://[invalid/"}),
    Anomaly("unknown session", headers={"Cookie": f"{COOKIE}; sessionid={'b' * 32}"}),
    Anomaly("invalid cookies", headers={"Cookie": f'{COOKIE}; sessionid="\x92; messages="; =;'}),
    Anomaly("invalid credentials", headers={"Authorization": "Basic \x92"}),
    Anomaly("unknown token", headers={"Authorization": "Bearer docora_0000"}),
    Anomaly("invalid languages", headers={"Accept-Language": "de;q=x, \x92"}),
    Anomaly("invalid addresses", headers={"X-Forwarded-For": "[::1, \x92", "X-Forwarded-Proto": "\x92"}),
    Anomaly("invalid ID", headers={"X-Request-ID": "\x92" * 300}),
    Anomaly("invalid range and date", headers={"Range": "bytes=9-1", "If-Modified-Since": "Thu, 99 Foo 2020"}),
]  # fmt: skip
PATHS = [
    "/nothing/", "/admin/", "/admin/live/overview/", "/accounts/login/", "/accounts/security/passkeys/sign-in/",
    "/api/repositories", "/docs/", "/static/docora/docora.css",
]  # fmt: skip


def send(path: str, *anomalies: Anomaly) -> int:
    """Return the status of the response to a request with these anomalies. Of two methods or bodies, the last one counts."""
    sent: dict[str, Any] = {"method": "POST", "content_type": "application/x-www-form-urlencoded"}
    headers = {"Cookie": COOKIE}
    for anomaly in anomalies:
        sent |= {name: value for name in ("method", "content_type") if (value := getattr(anomaly, name))}
        sent |= {"data": anomaly.body} if anomaly.body else {}
        headers |= anomaly.headers
    query = "&".join(anomaly.query for anomaly in anomalies if anomaly.query)
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    return client.generic(path=f"{path}?{query}", headers=headers, **sent).status_code


@pytest.mark.parametrize("path", PATHS)
def test_two_anomalies_are_no_server_error(db, path: str) -> None:
    pairs = combinations(ANOMALIES, 2)
    statuses = {f"{one.name}, {other.name}": send(path, one, other) for one, other in pairs}
    assert {pair: status for pair, status in statuses.items() if status >= 500} == {}
