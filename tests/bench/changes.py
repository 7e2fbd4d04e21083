"""Measure a small change in a small and in a large repository, and checks that find no change."""

import statistics
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.bench.report import Row
from tests.bench.repositories import make_large
from tests.bench.sink import COMMIT
from tests.bench.stage import Stage

if TYPE_CHECKING:
    from tests.support.git import Repo

CHANGED = 20
WATCHES = 10_000


def twenty_files(stage: Stage) -> Iterator[Row]:
    """Change 20 files in repositories of 10,000 and of 200,000."""
    from django.db import connection

    medians, fetches = [], []
    for count in (10_000, 200_000):
        repo = make_large(stage.git, f"acme/changes-{count}", count, 400)
        receiver = stage.receiver()
        watch = stage.watch(stage.app(receiver), repo.name)
        stage.job(watch)
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")  # now, so that autovacuum doesn't do it during the measurement
        receiver.counts()
        times = []
        for number in range(7):
            paths = (f"folder-{n:04}/file-{n * 100:06}.txt" for n in range(number, number + CHANGED))
            repo.commit(dict.fromkeys(paths, b"changed %d\n" % number))
            stage.request_sync(watch)
            times.append(stage.job(watch)["seconds"])
            assert receiver.counts()["posts"] == CHANGED
        medians.append(statistics.median(times))
        fetches.append(_fetch_seconds(stage, repo))
        receiver.close()
    small, large = medians
    fetch = [f"{seconds * 1000:.0f}" for seconds in fetches]
    yield Row(
        f"{CHANGED} files changed, of 10,000 and of 200,000",
        f"{small * 1000:.0f} ms and {large * 1000:.0f} ms",
        "≤ 200 ms, and within 1.5 × of each other",
        max(medians) <= 0.2 and max(medians) <= 1.5 * min(medians),
        "includes ls-refs, fetch, plan, send and record. "
        f"A bare `git fetch --depth=1` of such a change takes {fetch[0]} and {fetch[1]} ms",
    )


def _fetch_seconds(stage: Stage, repo: "Repo") -> float:
    """Return the time of a bare `git fetch --depth=1` of such a change."""
    clone = stage.directory / f"{repo.path.stem}-clone.git"
    stage.git.run("clone", "--quiet", "--bare", "--depth=1", repo.url, str(clone))
    times = []
    for number in range(5):
        repo.commit({f"fetched-{number}.txt": b"new\n"})
        began = time.perf_counter()
        stage.git.run("--git-dir", str(clone), "fetch", "--quiet", "--depth=1", repo.url, "HEAD")
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def checks(stage: Stage) -> Iterator[Row]:
    """Check 10,000 unchanged repositories in one process."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    from django.utils import timezone

    from deliveries_app.models import AppRepository
    from deliveries_app.sweep.head_checks import check_due
    from repositories_app.git import remote

    host = stage.receiver()
    app = stage.app(host)
    stage.many_watches(app, host.url, WATCHES, COMMIT)
    # Earlier watches must not be due: for them, the git server, which runs in this process, would start processes.
    AppRepository.objects.exclude(app=app).update(next_check_at=timezone.now() + timedelta(hours=1))
    started = []
    sys.addaudithook(lambda event, _: started.append(event) if event in {"subprocess.Popen", "os.fork"} else None)
    with remote.new_client() as client, CaptureQueriesContext(connection) as queries:
        cpu, began = time.process_time(), time.perf_counter()
        asked = check_due(client)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    written = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert asked >= WATCHES
    assert not app.watches.filter(next_sync_at__isnull=False).exists()
    yield Row(
        f"Check of {WATCHES:,} unchanged repositories",
        f"{seconds:.1f} s; {cpu / WATCHES * 1000:.2f} ms of CPU for each, {len(started)} processes started",
        "≤ 15 s on one core, ≤ 3 ms of CPU for each, none",
        seconds <= 15 and cpu / WATCHES <= 0.003 and not started,
        f"{len(queries)} statements, {len(written)} of them updates of up to 500 rows each",
    )
