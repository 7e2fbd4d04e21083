"""Measure how fast files are sent: compared with the ceiling, to a slow client, with more in flight, by several workers."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.lines import Line
from tests.bench.report import Chart, Row
from tests.bench.repositories import make_large
from tests.bench.stage import HERE, Receiver, Stage

if TYPE_CHECKING:
    from deliveries_app.models import AppRepository

FILE_BYTES = 4096
BODY_BYTES = 4800  # of the notification of such a file
SLOW_MS = 20


def ceiling(receiver: Receiver, in_flight: int, count: int = 20_000, *, mirror: Path | None = None) -> float:
    """Return the posts per second of a bare libcurl loop. With a mirror, it posts the files of its HEAD."""
    numbers = [str(number) for number in (count, in_flight, BODY_BYTES)]
    command = [sys.executable, "-I", str(HERE / "ceiling.py"), f"{receiver.url}/create", *numbers]
    if mirror:
        command.append(str(mirror))
    measured = float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    receiver.counts()
    return measured


def first_sync(stage: Stage) -> Iterator[Row]:
    """Send 10,000 files to a receiver that answers at once, and 2,000 to one that takes 20 ms."""
    repo = make_large(stage.git, "acme/ten-thousand", 10_000, FILE_BYTES)
    make_large(stage.git, "acme/two-thousand", 2_000, FILE_BYTES)
    quick = stage.receiver()
    rates, jobs, ceilings, floors, cpu = [], [], [], [], []
    for _ in range(3):
        ceilings.append(ceiling(quick, 8))
        floors.append(ceiling(quick, 8, 10_000, mirror=repo.path))
        job = stage.job(_fresh(stage, quick, "acme/ten-thousand"))
        counts = quick.counts()
        assert counts["posts"] == 10_000
        rates.append(counts["posts"] / counts["seconds"])
        jobs.append(job["seconds"])
        cpu.append(job["cpu"])
    top, floor, rate, seconds = map(statistics.median, (ceilings, floors, rates, jobs))
    yield Row(
        "First sync of 10,000 files of 4 KiB, one worker, 8 in flight, receiver answers at once",
        f"{rate:,.0f} files/s, {rate / top:.0%} of the ceiling; the whole job {seconds:.2f} s",
        f"≥ 8,000 files/s or ≥ 45 % of the ceiling ({top:,.0f} posts/s)",
        rate >= min(8000, 0.45 * top),
        f"the worker's CPU without git: {statistics.median(cpu) / 10_000 * 1e6:.0f} µs per file, a third of it libcurl and "
        "the kernel, a tenth the two signatures; sending pauses while PostgreSQL stores a batch",
    )
    yield Row(
        "The same, compared with `git cat-file` and a bare libcurl loop that posts the same files",
        f"{rate / floor:.0%}",
        f"≥ 85 % of {floor:,.0f} posts/s",
        rate >= 0.85 * floor,
        "the bare loop signs, plans, announces and records nothing",
    )
    slow = stage.receiver(SLOW_MS)
    bare = ceiling(slow, 8, 2_000)
    job = stage.job(_fresh(stage, slow, "acme/two-thousand"))
    counts = slow.counts()
    rate, top = counts["posts"] / counts["seconds"], 8 / (SLOW_MS / 1000)
    yield Row(
        f"First sync of 2,000 files, receiver takes {SLOW_MS} ms",
        f"{rate:,.0f} files/s, {rate / top:.0%}; the whole job {job['seconds']:.2f} s",
        f"≥ 95 % of max_in_flight / {SLOW_MS} ms ({top:,.0f}/s)",
        rate >= 0.95 * top,
        f"{rate / bare:.0%} of the bare loop, which reaches {bare:,.0f}/s",
    )


def in_flight(stage: Stage) -> Chart:
    """Measure files per second with 1 to 32 requests in flight."""
    make_large(stage.git, "acme/in-flight", 2_000, FILE_BYTES)
    lines = []
    for delay in (0, SLOW_MS):
        points = []
        for slots in (1, 2, 4, 8, 16, 32):
            receiver = stage.receiver(delay)
            stage.job(_fresh(stage, receiver, "acme/in-flight", slots))
            counts = receiver.counts()
            points.append((float(slots), counts["posts"] / counts["seconds"]))
            receiver.close()
        lines.append(Line(f"receiver takes {delay} ms", points))
    return Chart("in-flight", "Files per second by requests in flight", "requests in flight", "files/s", lines)


def several_workers(stage: Stage) -> Iterator[Row]:
    """Run two workers for two apps with a slow receiver, and four workers for one app."""
    from deliveries_app.models import App

    slow = stage.receiver(SLOW_MS)
    names = [f"acme/workers-{number}" for number in range(4)]
    for name in names:
        make_large(stage.git, name, 1_200, FILE_BYTES)
    alone = stage.job(_fresh(stage, slow, names[0]))["seconds"]
    watches = [_fresh(stage, slow, name) for name in names[:2]]
    slow.counts()
    with ThreadPoolExecutor() as pool:
        both = max(job["seconds"] for job in pool.map(stage.job, watches))
    gain = 2 * alone / both
    yield Row(
        f"Two workers on two repositories of different apps, receiver takes {SLOW_MS} ms",
        f"{gain:.2f} × one worker",
        "≥ 1.7 ×",
        gain >= 1.7,
        f"1,200 files each: {alone:.2f} s alone, {both:.2f} s together",
    )
    app = stage.app(slow)
    App.objects.filter(pk=app.pk).update(max_in_flight=8)
    watches = [stage.watch(app, name) for name in names]
    slow.counts()
    with ThreadPoolExecutor() as pool:
        list(pool.map(stage.job_with_a_slot, watches))
    most = slow.counts()["most"]
    yield Row("Four workers on four repositories of one app", f"{most} in flight at most", "≤ 8", 0 < most <= 8)


def _fresh(stage: Stage, receiver: Receiver, name: str, slots: int = 8) -> "AppRepository":
    """Watch the repository with a new app, and remove all mirrors."""
    watch = stage.watch(stage.app(receiver, max_in_flight=slots), name)
    shutil.rmtree(stage.directory / "data" / "repos", ignore_errors=True)
    return watch
