"""Measure open progress bars, polled as pages do: 100 browsers with a bar each, and a list that shows 100 of them."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from docora.process import die_with_parent
from tests.bench.report import Row
from tests.bench.stage import PROJECT, Stage, cpu_of, descendants

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from deliveries_app.models import AppRepository

BARS = 100
INTERVAL_SECONDS = 2  # between two polls of a page, as in its `hx-trigger`
ROUNDS = 8


def open_bars(stage: Stage) -> Iterator[Row]:
    cookies = _sign_in()
    bars = _start_operations(stage)
    stage.vacuum()
    with _web("tests.bench.polling:constant") as (url, pid):
        floor = _cpu_share(url, pid, bars, cookies)
    with _web() as (url, pid):
        for where, paths, limit, remark in (
            ("in one list", [_list_path()], 0.1, "the web process"),
            (
                "in as many browsers",
                bars,
                0.25,
                f"the server alone, answering with a constant, takes {floor:.1%}",
            ),
        ):
            _hold_leases()
            share = _cpu_share(url, pid, paths, cookies)
            each = share * INTERVAL_SECONDS / len(paths) * 1000
            yield Row(
                f"{BARS} open progress bars {where}, polled every {INTERVAL_SECONDS} s",
                f"{share:.1%} of a core, {each:.2f} ms of CPU per poll",
                f"≤ {limit:.0%} of a core",
                share <= limit,
                f"{remark}; a counter changes before each poll",
            )


def constant(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    """Answer with a constant, to measure the server alone."""
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"progress"]


@contextmanager
def _web(application: str = "docora.wsgi:application") -> Iterator[tuple[str, int]]:
    """Start a web process as `up` does. Yield its URL and its pid."""
    from docora.server.supervisor import WEB_ENVIRONMENT, web_command

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        web = subprocess.Popen(
            web_command(listener, application),
            cwd=PROJECT,
            env=os.environ | WEB_ENVIRONMENT | {"PORT": str(port), "PUBLIC_URL": url},
            pass_fds=[listener.fileno()],
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
    try:
        _wait_for(url)
        yield url, web.pid
    finally:
        web.terminate()
        web.wait()


def _cpu_share(url: str, pid: int, paths: list[str], cookies: str) -> float:
    """Return the share of a core that the web process takes while each path is polled."""
    _poll(url, paths, cookies, 1)
    cpu = _cpu(pid)
    _poll(url, paths, cookies, ROUNDS)
    return (_cpu(pid) - cpu) / (ROUNDS * INTERVAL_SECONDS)


def _sign_in() -> str:
    """Sign in an operator and return the cookies. Permissions from a group take the most statements."""
    from django.contrib.auth.models import Group, User
    from django.test import Client

    user = User.objects.create_user("anna", is_staff=True)
    user.groups.set(Group.objects.filter(name="Operators"))
    client = Client()
    client.force_login(user)
    return "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())


def _syncing() -> "QuerySet[AppRepository]":
    from deliveries_app.models import AppRepository, Status

    return AppRepository.objects.filter(status=Status.SCANNING)


def _list_path() -> str:
    """Return the path that the list of watches polls if its rows are those that are syncing."""
    return f"/admin/live/?ids={','.join(map(str, _syncing().values_list('pk', flat=True)))}"


def _start_operations(stage: Stage) -> list[str]:
    """Start an operation for each of `BARS` repositories, and return the paths that their bars poll."""
    from deliveries_app.actors import Actor
    from deliveries_app.models import AppRepository, Status
    from deliveries_app.progress import runs
    from deliveries_app.services import resync_many

    receiver = stage.receiver()
    app = stage.app(receiver)
    stage.many_watches(app, receiver.url, BARS, "c" * 40)
    made = [resync_many(Actor.command(), AppRepository.objects.filter(pk=watch.pk)) for watch in app.watches.all()]
    for operation in made:
        run = operation.runs.select_related("operation").get()
        runs.set_totals(run, files=1_000_000, size=10**9, left_out={}, commit="d" * 40)
        runs.seed(run)
    app.watches.update(status=Status.SCANNING)
    return [f"/admin/progress/{operation.operation_id}/?announced=0" for operation in made]


def _hold_leases() -> None:
    """Extend the leases, as if workers were syncing the watches now. A later end would not count as a lease."""
    from django.conf import settings

    from docora.db.clock import from_now

    _syncing().update(lease_until=from_now(2 * settings.LEASE_SECONDS - 1))


def _poll(url: str, paths: list[str], cookies: str, rounds: int) -> None:
    """Poll each path once a round, evenly spread over the interval. Increment a counter before each poll."""
    from docora.redis.connection import connection

    began = time.perf_counter()
    found: list[Any] = connection().keys("docora:progress:*")
    keys = [key for key in found if not key.endswith((b":parts", b":samples"))]
    browsers = [HTTPConnection(url.removeprefix("http://")) for _ in paths]
    for number in range(rounds * len(paths)):
        time.sleep(max(0.0, began + number * INTERVAL_SECONDS / len(paths) - time.perf_counter()))
        if keys:
            connection().hincrby(keys[number % len(keys)], "files_done", 1)
        browser = browsers[number % len(browsers)]
        browser.request("GET", paths[number % len(paths)], headers={"Cookie": cookies, "HX-Request": "true"})
        assert b"progress" in browser.getresponse().read()


def _cpu(pid: int) -> float:
    return sum(map(cpu_of, [pid, *descendants(pid)]))


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"{url}/health").close()
            return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
