"""Apps that try to stop the service for others, over real sockets: slow peers, and many requests at the same moment.

The web server runs in this process with all its threads, and answers with Docora itself.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from django.conf import settings as configured
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.utils import timezone

from deliveries_app.api import app as app_calls
from deliveries_app.api import files
from deliveries_app.models import App, AppRepository, Delivery, SyncRun
from deliveries_app.services import host_checks, imported_tokens
from docora.server import web
from docora.sign_in import provider_http
from tests.hostile.conftest import token_of
from tests.support.receiver import wait_for
from tests.support.staff import make_app, make_watch
from tests.support.web import request

pytestmark = pytest.mark.django_db(transaction=True)

ATTACKERS = configured.WEB_THREADS + 4


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float


class Site:
    """Docora on a port, with the threads of production."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        application = get_wsgi_application()

        def closing(environ: Any, start_response: Any) -> Any:
            """Close the database connection with each response: the test's database could not be emptied otherwise."""
            try:
                yield from (response := application(environ, start_response))
            finally:
                with contextlib.suppress(AttributeError):
                    response.close()
                connections.close_all()

        self._server = web.WebServer(closing, self._listener, configured.WEB_THREADS)
        self._server.drain_seconds = 0.0
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()

    def close(self) -> None:
        self._server.stop()
        self._thread.join(30)

    def call(
        self, method: str, path: str, token: str = "", body: object = None, headers: dict[str, str] | None = None
    ) -> Response:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"} | (headers or {})
            connection.request(method, path, json.dumps(body).encode() if body is not None else None, sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = (answer.getheader("Content-Type") or "").startswith("application/json")
        received = json.loads(content) if is_json and content else {}
        return Response(answer.status, dict(answer.getheaders()), received, time.monotonic() - began)

    def assert_responsive(self, token: str) -> None:
        """Check that probes and other calls respond at once."""
        for path, expected in (
            ("/health", {200}),
            ("/version", {200}),
            ("/health/ready", {200, 503}),
            ("/api/app", {200}),
        ):
            response = self.call("GET", path, token)
            assert response.status in expected
            assert response.seconds < 1, path


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def apps(site: Site) -> list[tuple[App, str]]:
    """Four apps with a token each."""
    made = [make_app(f"App {number}") for number in range(4)]
    return [(app, token_of(app)) for app in made]


class SilentHost:
    """A git host that accepts connections and never responds."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.connections.append(self._listener.accept()[0])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def silent_host() -> Iterator[SilentHost]:
    host = SilentHost()
    yield host
    host.close()


def at_once(calls: list[Callable[[], Response]]) -> list[Response]:
    """Make all calls at the same moment, and return the responses in their order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_limits_leave_threads_for_other_calls() -> None:
    limited = host_checks.LIMIT.total + files.STREAMS.total + app_calls.PINGS.total
    limited += imported_tokens.MAX_CONCURRENT + provider_http.MAX_CALLS
    assert configured.WEB_THREADS - limited >= 4


@pytest.mark.early(5)
def test_registrations_at_a_silent_git_host(site: Site, apps, silent_host: SilentHost, monkeypatch) -> None:
    """Each holds a thread that waits for the host, so they would block everything else."""
    monkeypatch.setattr(host_checks, "GIT_CHECK_SECONDS", 4.0)

    def register(number: int) -> Response:
        method, (_, token) = ("PUT", "POST")[number % 2], apps[number % len(apps)]
        return site.call(method, "/api/repositories", token, {"github_url": f"{silent_host.url}/acme/r{number}"})

    with ThreadPoolExecutor(ATTACKERS) as pool:
        futures = [pool.submit(register, number) for number in range(ATTACKERS)]
        wait_for(lambda: len(silent_host.connections) == host_checks.LIMIT.total, 20, 0.05)
        site.assert_responsive(apps[0][1])
        body = {"github_url": f"{silent_host.url}/acme/later"}
        accepted = site.call("POST", "/api/repositories", apps[0][1], body, {"Prefer": "respond-async"})
        assert (accepted.status, accepted.headers["Preference-Applied"]) == (202, "respond-async")
        assert accepted.seconds < 1
        responses = [future.result() for future in futures]
    assert Counter(response.status for response in responses) == {
        429: ATTACKERS - host_checks.LIMIT.total,
        404: host_checks.LIMIT.total,
    }
    for response in responses:
        if response.status == 429:
            assert int(response.headers["Retry-After"]) > 0
            assert response.body["code"] == "too_many_requests"
            assert response.seconds < 3
    of_app = Counter(number % len(apps) for number, one in enumerate(responses) if one.status == 404)
    assert max(of_app.values()) <= host_checks.LIMIT.per_caller
    assert [watch.github_url for watch in AppRepository.objects.all()] == [f"{silent_host.url}/acme/later"]
    again = site.call("POST", "/api/repositories", apps[1][1], {"github_url": f"{silent_host.url}/acme/again"})
    assert again.status == 404  # the threads are free again


def test_replacing_tokens_counts_against_the_same_limit(site: Site, apps, silent_host: SilentHost, monkeypatch) -> None:
    monkeypatch.setattr(host_checks, "GIT_CHECK_SECONDS", 2.0)
    app, token = apps[0]
    watch = make_watch(app, "docs")
    AppRepository.objects.filter(pk=watch.pk).update(github_url=f"{silent_host.url}/acme/docs")
    path = f"/api/repositories/{watch.repository.repository_id}/token"
    calls = [partial(site.call, "PATCH", path, token, {"github_token": f"ghp_{number}"}) for number in range(8)]
    assert Counter(response.status for response in at_once(calls)) == {429: 6, 422: 2}


@pytest.mark.early(5)
def test_clients_that_do_not_read_a_manifest(site: Site, apps, monkeypatch) -> None:
    """Each holds a thread that waits for the client, because the manifest is larger than what is buffered."""
    monkeypatch.setattr(site._server._server.adj, "outbuf_high_watermark", 65536)
    monkeypatch.setattr(web.Channel, "unread_seconds", 4.0)
    watches = [make_watch(app, "docs") for app, _ in apps]
    for watch in watches:
        Delivery.objects.bulk_create(
            [
                Delivery(
                    watch=watch, path=f"{'folder/' * 60}{number:05}", mode="100644", updated_at=timezone.now(),
                    sha="a" * 64, size=1, generation=1, acknowledged=True, sequence=1, kind="create",
                )
                for number in range(3_000)
            ],
            batch_size=1_000,
        )  # fmt: skip
    path = f"/api/repositories/{watches[0].repository.repository_id}/manifest"
    with contextlib.ExitStack() as stack:
        statuses = []
        for number in range(ATTACKERS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(("127.0.0.1", site.port))
            authorization = f"Authorization: Bearer {apps[number % len(apps)][1]}\r\n"
            client.sendall(request(path, headers=authorization))
            statuses.append(int(client.recv(64).split()[1]))
        assert Counter(statuses) == {200: files.STREAMS.total, 429: ATTACKERS - files.STREAMS.total}
        site.assert_responsive(apps[0][1])
        wait_for(lambda: not files.STREAMS._running, 30, 0.1)  # those clients were disconnected
    whole = site.call("GET", path, apps[0][1])
    assert whole.status == 200


RESYNC_QUOTA, WATCH_QUOTA = 3, 2


def test_parallel_resyncs_stay_within_the_quota(site: Site, apps) -> None:
    app, token = apps[0]
    App.objects.filter(pk=app.pk).update(max_resyncs_per_hour=RESYNC_QUOTA)
    ids = [make_watch(app, f"r{number}").repository.repository_id for number in range(5)]
    calls = [partial(site.call, "POST", f"/api/repositories/{ids[number % 5]}/resync", token) for number in range(12)]
    responses = at_once(calls)
    assert Counter(response.status for response in responses) == {202: RESYNC_QUOTA, 429: 12 - RESYNC_QUOTA}
    waits = [int(response.headers["Retry-After"]) for response in responses if response.status == 429]
    assert all(1100 < seconds <= 1200 for seconds in waits)  # an hour divided by the quota
    assert SyncRun.objects.count() == RESYNC_QUOTA


def test_parallel_registrations_stay_within_the_quota(site: Site, apps) -> None:
    app, token = apps[0]
    App.objects.filter(pk=app.pk).update(max_watches=WATCH_QUOTA)
    calls = [
        partial(
            site.call, "POST", "/api/repositories", token, {"github_url": f"http://127.0.0.1/acme/r{number}"},
            {"Prefer": "respond-async"},
        )
        for number in range(10)
    ]  # fmt: skip
    responses = at_once(calls)
    assert Counter(response.status for response in responses) == {202: WATCH_QUOTA, 409: 10 - WATCH_QUOTA}
    assert {response.body["code"] for response in responses if response.status == 409} == {"quota_exceeded"}
    assert AppRepository.objects.filter(app=app).count() == WATCH_QUOTA


def test_watching_again_and_again_stays_within_the_quota(site: Site, apps) -> None:
    """Each time, every file would be sent again."""
    app, token = apps[0]
    App.objects.filter(pk=app.pk).update(max_resyncs_per_hour=RESYNC_QUOTA)
    statuses = []
    for _ in range(6):
        body = {"github_url": "http://127.0.0.1/acme/loop"}
        watched = site.call("POST", "/api/repositories", token, body, {"Prefer": "respond-async"})
        statuses.append(watched.status)
        if watched.status == 202:
            assert site.call("DELETE", f"/api/repositories/{watched.body['repository_id']}", token).status == 204
    assert statuses == [202] * RESYNC_QUOTA + [429] * (6 - RESYNC_QUOTA)
