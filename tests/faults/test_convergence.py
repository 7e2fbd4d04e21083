"""Whatever happened: once things are quiet, each client's copy is its repository's HEAD (`convergence.py`)."""

import functools
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.convergence import Convergence, Summary
from tests.faults.universe import Universe
from tests.faults.workers import hurry
from tests.support import emptying

FIXED = 25  # with the same random numbers each time
_wanted = os.environ.get("HISTORIES")  # of `make soak`, which names a seed, too
HISTORIES = settings(
    max_examples=int(_wanted or FIXED),
    stateful_step_count=16,
    derandomize=_wanted is None,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_random_histories_end_with_the_copy_that_head_is(
    transactional_db: None, postgres_server, valkey_server, settings, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    settings.REPOS_DIR = tmp_path / "repos"
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS, settings.RETRY_BASE_DELAY_SECONDS = 3, 3, 0
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    hurry(monkeypatch)

    class Histories(Convergence):
        make = functools.partial(Universe, database=postgres_server, redis=valkey_server)
        clean = emptying.empty
        summary = Summary()

    try:
        run_state_machine_as_test(Histories, settings=HISTORIES)
    finally:
        if "SUMMARY" in os.environ:
            Path(os.environ["SUMMARY"]).write_text(json.dumps(vars(Histories.summary)))
    assert Histories.summary.histories >= HISTORIES.max_examples
    if _wanted is None:  # with other random numbers anything may be missing
        assert {"worker: kill", "re-sync", "force-push", "database restarted"} <= Histories.summary.events.keys()
