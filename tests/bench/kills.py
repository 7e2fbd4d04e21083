"""Measure how soon a sync resumes after its worker was killed with SIGKILL."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial

from docora.process import has_ended
from tests.bench.many import running
from tests.bench.report import Row
from tests.bench.repositories import make_large
from tests.bench.stage import Stage

KILLS, FILES = 20, 20_000
GOAL_SECONDS = 5.0
_TIMEOUT = 60.0


def worker_killed(stage: Stage) -> Iterator[Row]:
    """Kill the worker 20 times during one first sync. Start a new worker each time, as `up` does."""
    from deliveries_app.models import AppRepository, Outcome, SyncRun
    from tests.support.receiver import wait_for

    receiver = stage.receiver(delay_ms=20)
    repo = make_large(stage.git, "kills/big", FILES, 400)
    watch = stage.watch(stage.app(receiver), repo.name)
    waits: list[float] = []
    sent = 0.0
    with running(stage, workers=2) as start_worker:
        for number in range(KILLS):
            sent += wait_for(lambda: receiver.counts()["posts"], _TIMEOUT)
            time.sleep(0.5 + number / KILLS)  # vary the moment within the sweep's one-second cycle
            owner, process = AppRepository.objects.values_list("lease_owner", "lease_process").get(pk=watch.pk)
            os.kill(int(owner.split(":")[1]), signal.SIGKILL)
            killed_at = time.perf_counter()
            start_worker()
            wait_for(partial(has_ended, process), _TIMEOUT)
            sent += receiver.counts()["posts"]
            sent += wait_for(lambda: receiver.counts()["posts"], _TIMEOUT)
            waits.append(time.perf_counter() - killed_at)
        wait_for(AppRepository.objects.filter(pk=watch.pk, status="synced").exists, _TIMEOUT)
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
