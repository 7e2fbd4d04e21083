"""After any history (`convergence.py`), once nothing is due, each client's copy equals its repository's HEAD."""

import functools
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.convergence import Convergence, Summary
from tests.faults.universe import Universe
from tests.faults.workers import use_short_timeouts
from tests.support import fast_flush

DEFAULT_HISTORIES = 32  # the same ones each time
OUTAGES = {"Redis flushed", "Redis restarted", "database restarted", "mirror deleted", "mirror truncated"}
_requested = os.environ.get("HISTORIES")  # set by `make soak`, which also sets the seed
HISTORIES = settings(
    max_examples=int(_requested or DEFAULT_HISTORIES),
    stateful_step_count=16,
    derandomize=_requested is None,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_random_histories_converge_to_head(
    transactional_db: None, postgres_server, valkey_server, settings, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    settings.REPOS_DIR = tmp_path / "repos"
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS, settings.RETRY_BASE_DELAY_SECONDS = 3, 3, 0
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    use_short_timeouts(monkeypatch)

    class Histories(Convergence):
        make = functools.partial(Universe, database=postgres_server, redis=valkey_server)
        clean = fast_flush.empty
        summary = Summary()

    try:
        run_state_machine_as_test(Histories, settings=HISTORIES)
    finally:
        if "SUMMARY" in os.environ:
            Path(os.environ["SUMMARY"]).write_text(json.dumps(vars(Histories.summary)))
    assert Histories.summary.histories >= HISTORIES.max_examples
    if _requested is None:  # other histories may lack any event
        happened = Histories.summary.events.keys()
        assert {"worker: kill", "re-sync", "force-push", "bad neighbour"} <= happened
        assert happened & OUTAGES
