"""Measure many small repositories, with real workers and a sweep: first sync, one file changed in each, re-sync of all.

The floor is a bare `git init` and `git fetch --depth=1` of each, two at once, on the same git host in the same run.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.report import Row
from tests.bench.repositories import make_large
from tests.bench.sink import COMMIT
from tests.bench.stage import PROJECT, Stage

if TYPE_CHECKING:
    from deliveries_app.models import App
    from tests.support.git import Repo

COUNT, FILES, SIZE = 200, 30, 2048
IDLE = 500
GOALS = {"first sync": 1.5, "one file changed in each": 2.0, "re-sync of all": 2.5}  # times the floor
_TIMEOUT = 600.0


def small_repositories(stage: Stage, count: int = COUNT, workers: int = 2) -> Iterator[Row]:
    """Sync many small repositories of one app."""
    from deliveries_app import scheduling
    from deliveries_app.actors import Actor
    from deliveries_app.models import AppRepository
    from deliveries_app.services import resync_by_app

    repos = [make_large(stage.git, f"many/of-{number}", FILES, SIZE) for number in range(count)]
    floor = count / _bare_fetches(stage, repos)
    receiver = stage.receiver()
    app = stage.app(receiver)

    def push() -> None:
        for repo in repos:
            repo.commit({"folder-0000/file-000000.txt": b"changed\n"})

    def start_first() -> None:
        for repo in repos:
            stage.watch(app, repo.name)

    def announce() -> None:
        scheduling.request_sync(AppRepository.objects.filter(app=app))
        scheduling.enqueue_due()

    with running(stage, workers):
        for name, prepare, begin, posts in (
            ("first sync", lambda: None, start_first, count * FILES),
            ("one file changed in each", push, announce, count),
            ("re-sync of all", lambda: None, lambda: resync_by_app(Actor.command(), app), count * FILES),
        ):
            receiver.counts()
            prepare()
            machine, host, client = _machine_cpu(), _own_cpu(), receiver.cpu
            rate = count / _until_synced(app, begin)
            host, client = _own_cpu() - host, receiver.cpu - client
            docora = _machine_cpu() - machine - host - client
            sent = int(receiver.counts()["posts"])
            assert sent == posts, (name, sent, posts)
            yield Row(
                f"{count} repositories with {FILES} files, {workers} workers: {name}",
                f"{rate:.1f}/s, {docora / count * 1000:.0f} ms of CPU for each",
                f"≥ {GOALS[name] * floor:.0f}/s, {GOALS[name]} × a bare fetch",
                rate >= GOALS[name] * floor,
                f"bare `git init` and `git fetch`, two at once: {floor:.1f}/s. CPU of everything but the git host "
                f"({host / count * 1000:.0f} ms) and the receiver ({client / count * 1000:.0f} ms)",
            )
    receiver.close()


def idle_instance(stage: Stage) -> Iterator[Row]:
    """Leave two workers and the sweep alone with 500 synced watches, which are checked as usual."""
    from django.utils import timezone

    from deliveries_app.models import AppRepository

    host = stage.receiver()  # answers that HEAD has not moved
    now = timezone.now()
    stage.many_watches(stage.app(host), host.url, IDLE, COMMIT, moved_at=now - timedelta(hours=2))
    for number, pk in enumerate(AppRepository.objects.filter(next_check_at__lt=now).values_list("pk", flat=True)):
        at = now + timedelta(seconds=300 * number / IDLE)
        AppRepository.objects.filter(pk=pk).update(next_check_at=at)
    with running(stage, workers=2):
        time.sleep(10)
        machine, own, client = _machine_cpu(), _own_cpu(), host.cpu
        time.sleep(30)
        used = _machine_cpu() - machine - (_own_cpu() - own) - (host.cpu - client)
    host.close()
    yield Row(
        f"an idle instance with {IDLE} watches, two workers and the sweep",
        f"{used / 30 * 100:.1f} % of a core",
        "≤ 2 % of a core",
        used / 30 <= 0.02,
        "CPU of everything on the machine for 30 s, the git host and this process apart; no web process",
    )


def _bare_fetches(stage: Stage, repos: "list[Repo]") -> float:
    """Return the seconds that git takes to fetch all of them into new repositories, two at once."""

    def fetch(repo: "Repo") -> None:
        clone = str(stage.directory / "bare" / f"{repo.path.stem}.git")
        stage.git.run("init", "--quiet", "--bare", clone)
        stage.git.run("--git-dir", clone, "fetch", "--quiet", "--depth=1", repo.url, "HEAD")

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fetch, repos))
    return time.perf_counter() - began


@contextmanager
def running(stage: Stage, workers: int) -> Iterator[Callable[[], None]]:
    """Run workers and the sweep as `up` does. Yield a function that starts one more worker."""
    processes: list[subprocess.Popen[bytes]] = []
    with (stage.directory / "many.log").open("ab") as log:

        def start(*command: str) -> None:
            command = (sys.executable, "manage.py", *command)
            processes.append(subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log))

        def start_worker() -> None:
            queues = ("high", "default", "low") if len(processes) % 2 else ("high", "low", "default")
            start("rqworker", *queues, "--verbosity", "0")

        try:
            start("sweep")
            for _ in range(workers):
                start_worker()
            time.sleep(5)  # until they have started
            yield start_worker
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()


def _until_synced(app: "App", begin: Callable[[], object]) -> float:
    """Return the seconds until every watch of the app is synced."""
    began = time.perf_counter()
    begin()
    while app.watches.exclude(status="synced", lease_until=None, next_sync_at=None).exists():
        if time.perf_counter() - began > _TIMEOUT:
            raise TimeoutError("not all repositories were synced")
        time.sleep(0.05)
    return time.perf_counter() - began


def _machine_cpu() -> float:
    """Return the CPU seconds that all processes of this machine have used since it started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_cpu() -> float:
    """Return the CPU seconds of this process, which is the git host, and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
