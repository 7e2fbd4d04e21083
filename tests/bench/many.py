"""Measure many repositories, with real workers and a sweep: first sync, one file changed in each, re-sync of all.

The floor is a bare `git init` and `git fetch --depth=1` of each, two at once, on the same git host in the same run.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from docora.process import die_with_parent
from tests.bench.report import Row
from tests.bench.repositories import make_large
from tests.bench.sink import COMMIT
from tests.bench.stage import PROJECT, Receiver, Stage, open_stage

if TYPE_CHECKING:
    from deliveries_app.models import App
    from tests.support.git import Repo

COUNT, FILES, SIZE = 200, 30, 2048
LARGER_COUNT, LARGER_FILES = 20, 200
IDLE = 500
GOALS = {"first sync": (1.5, 60), "one file changed in each": (2.0, 46), "re-sync of all": (2.5, 38)}
"""How many times as fast as the floor, and ms of CPU for each repository."""
WORKERS = (1, 2, 4)
SYNCS = 10_000
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
        phases: list[tuple[str, Callable[[], object], Callable[[], object], int]] = [
            ("first sync", lambda: None, start_first, count * FILES),
            ("one file changed in each", push, announce, count),
            ("re-sync of all", lambda: None, lambda: resync_by_app(Actor.command(), app), count * FILES),
        ]
        for name, prepare, begin, posts in phases:
            receiver.counts()
            prepare()
            machine, host, client = _machine_cpu(), _own_cpu(), receiver.cpu
            rate = count / _until_synced(app, begin)
            host, client = _own_cpu() - host, receiver.cpu - client
            docora = _machine_cpu() - machine - host - client
            sent = int(receiver.counts()["posts"])
            assert sent == posts, (name, sent, posts)
            times, most = GOALS[name]
            used = docora / count * 1000
            work = f"{count} repositories with {FILES} files, {workers} workers: {name}"
            yield Row(
                work,
                f"{rate:.1f}/s",
                f"≥ {times * floor:.0f}/s, {times} × a bare fetch",
                rate >= times * floor,
                f"bare `git init` and `git fetch`, two at once: {floor:.1f}/s",
            )
            yield Row(
                f"{work}, CPU",
                f"{used:.0f} ms for each",
                f"≤ {most} ms",
                used <= most,
                f"of everything but the git host ({host / count * 1000:.0f} ms) and the receiver "
                f"({client / count * 1000:.0f} ms)",
            )
    receiver.close()


def larger_repositories(stage: Stage, workers: int = 2) -> Iterator[Row]:
    """Re-sync 20 repositories with 200 files each, with a receiver that answers at once and one that takes 20 ms."""
    from deliveries_app.actors import Actor
    from deliveries_app.services import resync_by_app

    repos = [make_large(stage.git, f"larger/of-{number}", LARGER_FILES, 4096) for number in range(LARGER_COUNT)]
    with running(stage, workers):
        for delay in (0, 20):
            receiver = stage.receiver(delay)
            app = stage.app(receiver)
            for repo in repos:
                stage.watch(app, repo.name)
            _until_synced(app, lambda: None)
            receiver.counts()
            seconds = _until_synced(app, partial(resync_by_app, Actor.command(), app))
            assert receiver.counts()["posts"] == LARGER_COUNT * LARGER_FILES
            floor = LARGER_COUNT * LARGER_FILES * delay / 1000 / app.max_in_flight
            limit = 1.1 * floor or 1.2
            yield Row(
                f"re-sync of all of {LARGER_COUNT} repositories with {LARGER_FILES} files, receiver takes {delay} ms",
                f"{seconds:.1f} s",
                f"≤ {limit:.1f} s",
                seconds <= limit,
                f"1.1 times the minimum with {app.max_in_flight} in flight, {floor:.1f} s" if floor else "",
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
    stage.vacuum()
    without = _used_in_30_seconds(host)
    with running(stage, workers=2):
        time.sleep(10)
        used = _used_in_30_seconds(host) - without
    host.close()
    yield Row(
        f"an idle instance with {IDLE} watches, two workers and the sweep",
        f"{used * 100:.1f} % of a core",
        "≤ 2 % of a core",
        used <= 0.02 and without < 0.1,  # with more, something else was at work
        f"CPU of everything on the machine for 30 s, without what it used before ({without * 100:.1f} %), the git host and "
        "this process; no web process",
    )


def _used_in_30_seconds(host: Receiver) -> float:
    """Return what the machine uses, in cores, without the git host and this process."""
    machine, own, client = _machine_cpu(), _own_cpu(), host.cpu
    time.sleep(30)
    return (_machine_cpu() - machine - (_own_cpu() - own) - (host.cpu - client)) / 30


def several_workers(stage: Stage, count: int = COUNT) -> Iterator[Row]:
    """Re-sync small repositories of one app with one, two and four workers."""
    from deliveries_app.actors import Actor
    from deliveries_app.services import resync_by_app

    app = stage.app(stage.receiver())
    for number in range(count):
        stage.watch(app, make_large(stage.git, f"workers/of-{number}", FILES, SIZE).name)
    with running(stage, workers=2):
        _until_synced(app, lambda: None)
    seconds: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(3):  # in turn, because the machine's own speed varies
        for workers in WORKERS:
            with running(stage, workers):
                seconds[workers] += [_until_synced(app, lambda: resync_by_app(Actor.command(), app)) for _ in range(2)]
    rates = [count / min(times) for times in seconds.values()]
    yield Row(
        f"re-sync of {count} repositories with {FILES} files by {', '.join(map(str, WORKERS))} workers",
        ", ".join(f"{rate:.1f}/s" for rate in rates),
        "more workers are never slower",
        all(more >= 0.97 * fewer for fewer, more in itertools.pairwise(rates)),
        "the best of six for each, measured in turn; within 3 %",
    )


def memory_after_many(stage: Stage, count: int = 100) -> Iterator[Row]:
    """Re-sync small repositories 10,000 times with one worker."""
    from deliveries_app.actors import Actor
    from deliveries_app.services import resync_by_app

    app = stage.app(stage.receiver())
    for number in range(count):
        stage.watch(app, make_large(stage.git, f"memory/of-{number}", 1, SIZE).name)
    sizes = []
    with running(stage, workers=1):
        _until_synced(app, lambda: None)
        for _ in range(SYNCS // count):
            with _watched_memory() as most:
                _until_synced(app, lambda: resync_by_app(Actor.command(), app))
            sizes.append(most())
    first, last = sizes[0], max(sizes[-5:])
    yield Row(
        f"memory of a worker after {SYNCS:,} re-syncs of small repositories",
        f"{last - first:+.0f} MB since the first {count}",
        "within 10 MB",
        last - first <= 10,
        f"the worker and its work-horse: {first:.0f} MB, then {last:.0f} MB; at most {max(sizes):.0f} MB",
    )


@contextmanager
def _watched_memory() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the peak memory of the workers so far, in MB."""
    sizes = [0.0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            sizes.append(sum(map(_memory_of, _workers())))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(sizes)
    finally:
        over.set()
        thread.join()


def _workers() -> list[int]:
    """Return the workers and their work-horses. A work-horse's own children share its memory until they become git."""
    from tests.support.processes import children

    workers = [pid for pid in children(os.getpid()) if _is_worker(pid)]
    return [*workers, *(horse for worker in workers for horse in children(worker))]


def _is_worker(pid: int) -> bool:
    try:
        return b"rqworker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _memory_of(pid: int) -> float:
    """Return the memory of a process in MB, with its share of what it shares with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


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
            ends_with_this = partial(die_with_parent, signal.SIGTERM)
            processes.append(subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, preexec_fn=ends_with_this))

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


if __name__ == "__main__":  # on SQLite, for which the process needs settings of its own
    with open_stage("sqlite") as stage:
        for row in small_repositories(stage):
            print(json.dumps(asdict(row) | {"work": f"{row.work}, SQLite"}), flush=True)
