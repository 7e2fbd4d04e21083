"""What open progress bars cost: 100 of them, each asking once a second, as 100 browsers would."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

from tests.bench.report import Row
from tests.bench.stage import PROJECT, Stage, cpu_of, descendants

BARS, SECONDS = 100, 15


def open_bars(stage: Stage) -> Iterator[Row]:
    from django.db import connection

    cookies = _signed_in()
    connection.cursor().execute("VACUUM")  # what the rows before have left to do is no bar's cost
    bars = _operations(stage)
    with _web("tests.bench.polling:nothing") as (url, pid):
        floor = _share(url, pid, bars, cookies)
    with _web() as (url, pid):
        for what, paths, remark in (
            (f"{BARS} open progress bars in one list, polled every second", [_list_of()], "the web process"),
            (
                f"{BARS} open progress bars in as many browsers, each polled every second",
                bars,
                f"the server alone, when it answers with a constant, takes {floor:.1%}",
            ),
        ):
            share = _share(url, pid, paths, cookies)
            figures = f"{share:.1%} of a core, {share / len(paths) * 1000:.2f} ms for each poll"
            remark += "; the counters move between two polls"
            yield Row(what, figures, "≤ 10 % of a core", share <= 0.1, remark)


def nothing(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    """The least that an answer costs."""
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"progress"]


@contextmanager
def _web(application: str = "docora.wsgi:application") -> Iterator[tuple[str, int]]:
    """A web process as `up` starts it: its address and its pid."""
    from docora.server.supervisor import web_command

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [*web_command(port)[:-1], application]
    web = subprocess.Popen(command, cwd=PROJECT, env=os.environ | {"PORT": str(port), "PUBLIC_URL": url})
    try:
        _wait_for(url)
        yield url, web.pid
    finally:
        web.terminate()
        web.wait()


def _share(url: str, pid: int, paths: list[str], cookies: str) -> float:
    """Of a core, while each path is asked for once a second."""
    _poll(url, paths, cookies, 2)
    cpu = _cpu(pid)
    _poll(url, paths, cookies, SECONDS)
    return (_cpu(pid) - cpu) / SECONDS


def _signed_in() -> str:
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    return "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())


def _list_of() -> str:
    """What the list of watches asks for all its rows that are under way."""
    from deliveries_app.models import AppRepository

    return f"/admin/live/?ids={','.join(map(str, AppRepository.objects.values_list('pk', flat=True)))}"


def _operations(stage: Stage) -> list[str]:
    """So many operations under way, and where their bars ask: with what was read out last, which is nothing."""
    from deliveries_app.actors import Actor
    from deliveries_app.models import AppRepository
    from deliveries_app.services import resync_many

    receiver = stage.receiver()
    app = stage.app(receiver)
    stage.many_watches(app, receiver.url, BARS, "c" * 40)
    made = [resync_many(Actor.command(), AppRepository.objects.filter(pk=watch.pk)) for watch in app.watches.all()]
    return [f"/admin/progress/{operation.operation_id}/?said=0" for operation in made]


def _poll(url: str, paths: list[str], cookies: str, seconds: int) -> None:
    """Evenly spread; a counter moves before each."""
    from docora.redis.connection import connection

    began = time.perf_counter()
    keys = connection().keys("docora:progress:*")
    browsers = [HTTPConnection(url.removeprefix("http://")) for _ in paths]
    for number in range(seconds * len(paths)):
        time.sleep(max(0.0, began + number / len(paths) - time.perf_counter()))
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
