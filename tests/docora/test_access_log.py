"""The access log, request ids, and the metrics of requests."""

import io
import ipaddress
import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import path
from prometheus_client.parser import text_string_to_metric_families

from docora.conf.logs import configure
from docora.security.redaction import MASK
from docora.web import durations

logger = logging.getLogger("of.a.view")
CLIENT, PROXY = "203.0.113.9", "10.0.0.1"


def ok(request: HttpRequest, token: str = "", key: str = "", number: int = 0) -> HttpResponse:
    logger.warning("of_the_view")
    return HttpResponse("ok")


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("broken")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def content() -> Iterator[bytes]:
        yield b"1"
        logger.warning("streaming")
        yield b"2"

    return StreamingHttpResponse(content())


urlpatterns = [
    path("ok/", ok),
    path("ok/<int:number>/", ok),
    path("fail/", fail),
    path("stream/", stream),
    path("sign-in/<str:token>/", ok),
    path("reset/<str:key>/", ok),
    path("admin/live/overview/", ok),
    path("admin/progress/bulk_0/", ok),
]


@pytest.fixture(autouse=True)
def _urls(settings) -> Iterator[None]:
    settings.ROOT_URLCONF = __name__
    durations._counts.clear()
    yield
    durations._counts.clear()


@pytest.fixture
def log() -> Iterator[Callable[[], list[dict[str, object]]]]:
    """Return the records that the process has logged, as they are written."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure({"format": "json", "level": "INFO"})
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_request_is_logged_without_its_query(log) -> None:
    answer = Client(REMOTE_ADDR=CLIENT).get("/ok/7/?token=plain-words", headers={"Authorization": "Bearer secret"})
    of_the_view, handled = log()
    assert handled.pop("duration_ms") >= 0
    assert handled.pop("timestamp")
    assert handled == {
        "event": "request_handled",
        "logger": "docora.web.access_log",
        "level": "info",
        "method": "GET",
        "path": "/ok/7/",
        "status": 200,
        "client": CLIENT,
        "request_id": answer.headers["X-Request-Id"],
    }
    assert of_the_view["request_id"] == answer.headers["X-Request-Id"]


@pytest.mark.parametrize("secret", ["plain-words", "pl%C3%A4in%20words"])
@pytest.mark.parametrize("folder", ["/sign-in/", "/reset/"])
def test_secrets_in_the_path_are_masked(log, folder: str, secret: str) -> None:
    Client().get(f"{folder}{secret}/")
    assert log()[-1]["path"] == f"{folder}{MASK}/"


@pytest.mark.parametrize(
    ("address", "needs_https"),
    [("/sign-in/plain-words", False), ("/reset/plain-words?next=plain-words", False), ("/sign-in/plain-words/", True)],
)
def test_secrets_are_masked_if_the_path_is_redirected(log, settings, address: str, needs_https: bool) -> None:
    settings.SECURE_SSL_REDIRECT = needs_https
    assert Client().get(address).status_code == 301
    assert "plain-words" not in json.dumps(log())


def test_query_of_a_failed_request_is_not_logged(log) -> None:
    Client().get("/nothing/?code=plain-words")
    records = log()
    assert "Not Found: /nothing/" in [record["event"] for record in records]
    assert "plain-words" not in json.dumps(records)


def test_path_cannot_add_lines(log) -> None:
    Client().get("/nothing%0Aevent%1B[2J/\u00fc")
    assert log()[0]["path"] == "/nothing%0Aevent%1B%5B2J/%C3%BC"


def test_each_request_has_its_own_id(log) -> None:
    ids = {Client().get("/ok/").headers["X-Request-Id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    logger.warning("after_the_request")
    assert "request_id" not in log()[-1]


@pytest.mark.parametrize(
    ("address", "sent", "kept"),
    [
        (PROXY, "4bf92f35-77b3.4da6_a3ce", True),
        (CLIENT, "4bf92f35-77b3.4da6_a3ce", False),
        (PROXY, "short", False),
        (PROXY, "x" * 129, False),
        (PROXY, 'with "quotes" and blanks', False),
        (PROXY, "", False),
    ],
)
def test_request_id_of_a_trusted_proxy_is_kept(settings, address: str, sent: str, kept: bool) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    answer = Client(REMOTE_ADDR=address).get("/ok/", headers={"X-Request-Id": sent})
    assert (answer.headers["X-Request-Id"] == sent) is kept
    assert re.fullmatch("[A-Za-z0-9._-]{8,128}", answer.headers["X-Request-Id"])


def test_request_id_of_a_client_is_ignored_without_trusted_proxies() -> None:
    assert Client().get("/ok/", headers={"X-Request-Id": "chosen-by-a-client"}).headers["X-Request-Id"] != (
        "chosen-by-a-client"
    )


def test_failures_are_logged_with_their_id(log) -> None:
    answer = Client(raise_request_exception=False).get("/fail/")
    assert answer.status_code == 500
    traceback, handled = log()
    assert "RuntimeError: broken" in str(traceback["exception"])
    assert (handled["event"], handled["status"]) == ("request_handled", 500)
    assert traceback["request_id"] == handled["request_id"] == answer.headers["X-Request-Id"]


def test_streamed_response_is_logged_at_its_end(log) -> None:
    answer = Client().get("/stream/")
    assert log() == []
    assert answer.getvalue() == b"12"
    assert [record["event"] for record in log()] == ["streaming", "request_handled"]
    assert log()[-1]["request_id"] == answer.headers["X-Request-Id"]


def test_abandoned_stream_is_logged_too(log, db) -> None:
    answer = Client().get("/stream/")
    next(iter(answer.streaming_content))
    answer.close()
    assert [record["event"] for record in log()] == ["request_handled"]


def test_probes_are_logged_only_if_they_fail(log, settings) -> None:
    settings.ROOT_URLCONF = "docora.urls"
    Client().get("/health")
    Client().get("/static/docora/docora.css")
    assert log() == []
    Client().post("/health")
    handled, of_django = log()
    assert (handled["path"], handled["status"]) == ("/health", 405)
    assert of_django["request_id"] == handled["request_id"]
    root = logging.getLogger()
    root.setLevel("DEBUG")
    root.handlers[0].setLevel("DEBUG")
    Client().get("/health")
    assert (log()[-1]["event"], log()[-1]["level"]) == ("request_handled", "debug")


def test_get_that_is_not_allowed_is_logged_once(log, settings, db) -> None:
    """Django logs each error response unless it has been logged, so the page must not be another response."""
    settings.ROOT_URLCONF = "docora.urls"
    answer = Client().get("/accounts/logout/")
    assert (answer.status_code, answer["X-Frame-Options"]) == (405, "DENY")
    assert [record["event"] for record in log() if "Method" in record["event"]] == [
        "Method Not Allowed (GET): /accounts/logout/"
    ]


@pytest.mark.parametrize("address", ["/admin/live/overview/", "/admin/progress/bulk_0/"])
def test_polls_of_open_pages_are_not_logged(log, address: str) -> None:
    Client().get(address)
    assert [record["event"] for record in log()] == ["of_the_view"]


# --- Metrics ------------------------------------------------------------------------------------------------------------


def requests_counted() -> dict[tuple[str, str, str], dict[str, float]]:
    """Return (method, route, status) → the samples of its histogram."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(Client().get("/metrics").text):
        if family.name == "docora_request_duration_seconds":
            for sample in family.samples:
                labels = dict(sample.labels)
                key = labels["method"], labels["route"], labels["status"]
                found.setdefault(key, {})[f"{sample.name[32:]}{labels.get('le', '')}"] = sample.value
    return found


@pytest.fixture
def real_urls(settings, db) -> None:
    settings.ROOT_URLCONF = "docora.urls"


def test_requests_are_counted_by_method_route_and_status(real_urls: None) -> None:
    for address in (
        "/docs/",
        "/docs/",
        "/docs/api/",
        "/api/repositories/repo_1/runs",
        "/nothing",
        "/static/docora/docora.css",
        "/health",
        "/version",
    ):
        Client().get(address)
    Client().post("/docs/")
    Client().generic("BREW", "/docs/")
    Client().get("/docs/", headers={"Host": "evil.example"})
    counted = {key: samples["count"] for key, samples in requests_counted().items()}
    assert counted == {
        ("GET", "docs/", "2xx"): 2,
        ("GET", "docs/api/", "2xx"): 1,
        ("GET", "api/repositories/<repository_id>/runs", "4xx"): 1,
        ("GET", "unknown", "4xx"): 2,
        ("GET", "static", "2xx"): 1,
        ("POST", "docs/", "4xx"): 1,
        ("other", "docs/", "4xx"): 1,
    }
    assert {key: samples["count"] for key, samples in requests_counted().items()} == counted  # scrapes don't count


def test_buckets_are_cumulative_and_totals_cover_all_processes(real_urls: None) -> None:
    for seconds in (0.005, 0.3, 0.3, 60.0):
        durations.add("GET", "docs/", 200, seconds)
    durations.flush()  # as another web process does
    durations.add("GET", "docs/", 200, 0.3)
    samples = requests_counted()["GET", "docs/", "2xx"]
    assert samples["sum"] == pytest.approx(60.905)
    assert (samples["bucket0.005"], samples["bucket0.25"], samples["bucket0.5"]) == (1, 1, 4)
    assert samples["bucket10.0"] == 4
    assert samples["bucket+Inf"] == samples["count"] == 5


def test_counting_survives_a_redis_outage(real_urls: None, valkey_server) -> None:
    valkey_server.stop()
    assert Client().get("/docs/").status_code == 200
    assert requests_counted() == {}
    valkey_server.start()
    Client().get("/docs/")
    assert requests_counted()["GET", "docs/", "2xx"]["count"] == 1


def test_build_and_process_metrics(real_urls: None, monkeypatch) -> None:
    monkeypatch.setenv("DOCORA_BUILD_SHA", "5e5e5e5")
    page = Client().get("/metrics").text
    build = re.search(r"(?m)^docora_build_info{(.*)} 1\.0$", page)
    assert build
    assert 'revision="5e5e5e5"' in build[1]
    assert re.search(r"(?m)^process_resident_memory_bytes [\d.e+]+$", page)
    assert re.search(r"(?m)^process_cpu_seconds_total [\d.]+$", page)
