"""Validation of requests, and the headers of responses."""

import pytest

from docora.http.messages import MAX_HEADER_VALUE, MAX_HEADERS, Outcome, Request


@pytest.mark.parametrize("header", ["X: a\r\nY: b", "X: a\nY: b", "X: a\rY: b", "X: a\0", "X: ü", "no colon"])
def test_header_injection_is_rejected(header):
    with pytest.raises(ValueError, match="eader"):
        Request("POST", "http://127.0.0.1/", ("A: b", header))


@pytest.mark.parametrize(
    ("method", "body"), [("GET", b"x"), ("HEAD", b"x"), ("POST / HTTP/1.1\r\nX: y", b""), ("PUT", b""), ("", b"")]
)
def test_invalid_method_or_body_is_rejected(method, body):
    with pytest.raises(ValueError):  # noqa: PT011
        Request(method, "http://127.0.0.1/", (), body)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.0),
        ("Sun Nov  6 08:49:37 1994", 37.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),  # already past
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),
        ("Sun, 99 Nov 1994 99:49:37 GMT", None),
        ("٣", None),
    ],
)
def test_retry_after(value, seconds):
    lines = [] if value is None else [f"Retry-After: {value}\r\n".encode()]
    assert Outcome(503, None, "", lines).retry_after(now=784111740.0) == seconds  # 08:49:00 of that day


def test_response_headers_are_bounded():
    lines = [b"HTTP/1.1 200 OK\r\n", *(b"X-%d: %s\r\n" % (number, b"x" * 10_000) for number in range(500)), b"\r\n"]
    headers = Outcome(200, None, "", lines).headers
    assert len(headers) == MAX_HEADERS
    assert max(len(value) for value in headers.values()) == MAX_HEADER_VALUE


def test_headers_of_an_interim_response_do_not_count():
    lines = [b"HTTP/1.1 103 Early Hints\r\n", b"Link: <a>\r\n", b"\r\n", b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", b"\r\n"]
    assert Outcome(200, None, "", lines).headers == {"x-a": "b"}


@pytest.mark.parametrize("location", ["/new", "/new?token=x", "/new#part", "https://a.example/new?b#c?d"])
def test_redirect_target_has_no_query(location):
    outcome = Outcome(302, None, "", [f"Location: {location}\r\n".encode()])
    assert outcome.redirect_target("https://a.example/old?token=x") == "https://a.example/new"


def test_repr_of_a_request_hides_headers_and_body():
    assert "hunter2" not in repr(Request("POST", "https://a.example/", ("Authorization: Bearer hunter2",), b"hunter2"))
