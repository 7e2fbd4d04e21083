"""Requests with two things wrong at once, from a stranger: none is a server error, which would set off an alert."""

from itertools import combinations
from typing import Any

import pytest
from django.test import Client

COOKIE = f"csrftoken={'a' * 32}"
"""With it, Django looks for the CSRF token in the form."""
FORM = "application/x-www-form-urlencoded"
FILE = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nc'
ANOMALIES: dict[str, dict[str, Any]] = {
    "method GET": {"method": "GET"},
    "method PUT": {"method": "PUT"},
    "unknown method": {"method": "BREW"},
    "NUL in the query": {"query": "q=%00"},
    "invalid UTF-8 in the query": {"query": "q=%ff&next=%c3%28"},
    "address of another site to return to": {"query": "next=//other.example/"},
    "huge number": {"query": f"id={'9' * 40}&page={'9' * 40}"},
    "form without a boundary": {"content_type": "multipart/form-data; boundary=", "data": b"x"},
    "boundary that isn't ASCII": {"content_type": "multipart/form-data; boundary\x92=x", "data": b"x"},
    "unfinished file": {"content_type": "multipart/form-data; boundary=x", "data": FILE},
    "too many fields": {"content_type": FORM, "data": b"a=b&" * 1001},
    "invalid UTF-8 in a field": {"content_type": FORM, "data": b"username=%ff&password=%00"},
    "unknown character set": {"content_type": f"{FORM}; charset=utf-99", "data": b"a=b"},
    "unfinished JSON": {"content_type": "application/json", "data": b'{"github_url":'},
    "JSON with a lone surrogate": {"content_type": "application/json", "data": b'{"github_url": "\\ud800"}'},
    "another host": {"headers": {"Host": "other.example"}},
    "invalid host": {"headers": {"Host": "[::1"}},
    "invalid referrer": {"headers": {"Referer": "http://[invalid/"}},
    "invalid origin": {"headers": {"Origin": "http://[invalid/"}},
    "poll of an invalid page": {"headers": {"HX-Request": "true", "HX-Current-URL": "http://[invalid/"}},
    "unknown session": {"headers": {"Cookie": f"{COOKIE}; sessionid={'b' * 32}"}},
    "invalid cookies": {"headers": {"Cookie": f'{COOKIE}; sessionid="\x92; messages="; =;'}},
    "invalid credentials": {"headers": {"Authorization": "Basic \x92"}},
    "unknown token": {"headers": {"Authorization": "Bearer docora_0000"}},
    "invalid languages": {"headers": {"Accept-Language": "de;q=x, \x92"}},
    "invalid addresses": {"headers": {"X-Forwarded-For": "[::1, \x92", "X-Forwarded-Proto": "\x92"}},
    "invalid ID": {"headers": {"X-Request-ID": "\x92" * 300}},
    "invalid range and date": {"headers": {"Range": "bytes=9-1", "If-Modified-Since": "Thu, 99 Foo 2020"}},
}
"""What is sent instead of a POST of an empty form."""
PATHS = [
    "/nothing/", "/admin/", "/admin/live/overview/", "/accounts/login/", "/accounts/security/passkeys/sign-in/",
    "/api/repositories", "/docs/", "/static/docora/docora.css",
]  # fmt: skip


def send(path: str, *names: str) -> int:
    """Return the status of the response to a request with these anomalies. Of two methods or bodies, the last one is sent."""
    sent: dict[str, Any] = {"method": "POST", "content_type": FORM}
    headers, query = {"Cookie": COOKIE}, []
    for name in names:
        sent |= ANOMALIES[name]
        headers |= sent.pop("headers", {})
        query.append(sent.pop("query", ""))
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    return client.generic(path=f"{path}?{'&'.join(filter(None, query))}", headers=headers, **sent).status_code


@pytest.mark.parametrize("path", PATHS)
def test_two_anomalies_are_no_server_error(db, path: str) -> None:
    statuses = {pair: send(path, *pair) for pair in combinations(ANOMALIES, 2)}
    assert {pair: status for pair, status in statuses.items() if status >= 500} == {}
