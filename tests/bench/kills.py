"""Measure how soon a repository continues after the worker that was sending it was killed (-9)."""

import os
import signal
import time
from collections.abc import Callable, Iterator

from tests.bench.many import running
from tests.bench.report import Row
from tests.bench.repositories import make_large
from tests.bench.stage import Stage

KILLS, FILES = 20, 20_000
GOAL_SECONDS = 5.0
_TIMEOUT = 60.0


def worker_killed(stage: Stage) -> Iterator[Row]:
    """Kill the worker 20 times during one first sync. Another one is started each time, as `up` does."""
    from deliveries_app.models import AppRepository, Outcome, SyncRun

    receiver = stage.receiver(delay_ms=20)
    repo = make_large(stage.git, "kills/big", FILES, 400)
    watch = stage.watch(stage.app(receiver), repo.name)
    waits, sent = [], 0
    with running(stage, workers=2) as start_worker:
        for _ in range(KILLS):
            sent += _wait_for(lambda: receiver.counts()["posts"])
            time.sleep(0.5)
            owner, process = AppRepository.objects.values_list("lease_owner", "lease_process").get(pk=watch.pk)
            os.kill(int(owner.split(":")[1]), signal.SIGKILL)
            killed_at = time.perf_counter()
            start_worker()
            _wait_for(lambda process=process: not _runs(int(process.split()[-2])))
            sent += receiver.counts()["posts"]
            sent += _wait_for(lambda: receiver.counts()["posts"])
            waits.append(time.perf_counter() - killed_at)
        _wait_for(lambda: AppRepository.objects.filter(pk=watch.pk, status="synced").exists())
    sent += receiver.counts()["posts"]
    receiver.close()
    run = SyncRun.objects.get(watch=watch)
    missing = FILES - watch.deliveries.filter(acknowledged=True).count()
    complete = not missing and (run.outcome, run.files_done) == (Outcome.SUCCEEDED, FILES)
    yield Row(
        f"kill -9 of the worker in the middle of a run, {KILLS} times in a row",
        f"first notification of the next attempt after {sorted(waits)[KILLS // 2]:.1f} s, longest {max(waits):.1f} s",
        f"≤ {GOAL_SECONDS:g} s, nothing missing, never failed",
        max(waits) <= GOAL_SECONDS and complete,
        f"{FILES:,} files, {missing} of them missing, {sent - FILES:.0f} sent twice; the run {run.get_outcome_display()}",
    )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for(condition: Callable[[], float]) -> float:
    """Return the first true value of the condition."""
    ends_at = time.perf_counter() + _TIMEOUT
    while not (value := condition()):
        if time.perf_counter() > ends_at:
            raise TimeoutError("the repository did not continue")
        time.sleep(0.01)
    return value
