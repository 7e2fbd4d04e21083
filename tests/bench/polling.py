"""What open progress bars cost: 100 of them, each asking once a second, as 100 browsers would."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from tests.bench.report import Row
from tests.bench.stage import PROJECT, Stage, cpu_of, descendants

BARS, SECONDS = 100, 15


def open_bars(stage: Stage) -> Iterator[Row]:
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("root", password="x"))
    cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())
    paths = _operations(stage)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    from docora.management.commands.up import web_command

    web = subprocess.Popen(web_command(port), cwd=PROJECT, env=os.environ | {"PORT": str(port), "PUBLIC_URL": url})
    try:
        _wait_for(url)
        _poll(url, paths, cookies, 2)
        cpu = _cpu(web.pid)
        _poll(url, paths, cookies, SECONDS)
        share = (_cpu(web.pid) - cpu) / SECONDS
    finally:
        web.terminate()
        web.wait()
    yield Row(
        f"{BARS} open progress bars, each polled every second",
        f"{share:.1%} of a core, {share / BARS * 1000:.2f} ms for each poll",
        "≤ 10 % of a core",
        share <= 0.1,
        "the web process; the counters move between two polls",
    )


def _operations(stage: Stage) -> list[str]:
    """So many operations under way, and where their bars ask."""
    from deliveries_app.actors import Actor
    from deliveries_app.models import AppRepository
    from deliveries_app.services import resync_many

    receiver = stage.receiver()
    app = stage.app(receiver)
    stage.many_watches(app, receiver.url, BARS, "c" * 40)
    made = [resync_many(Actor.command(), AppRepository.objects.filter(pk=pair.pk)) for pair in app.watches.all()]
    return [f"/admin/progress/{operation.operation_id}/" for operation in made]


def _poll(url: str, paths: list[str], cookies: str, seconds: int) -> None:
    """Evenly spread; a counter moves before each."""
    from docora.redis import connection

    began = time.perf_counter()
    keys = connection().keys("docora:progress:*")
    for number in range(seconds * len(paths)):
        time.sleep(max(0.0, began + number / len(paths) - time.perf_counter()))
        if keys:
            connection().hincrby(keys[number % len(keys)], "files_done", 1)
        request = urllib.request.Request(
            url + paths[number % len(paths)], headers={"Cookie": cookies, "HX-Request": "true"}
        )
        with urllib.request.urlopen(request) as answer:
            assert b"progress" in answer.read()


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
