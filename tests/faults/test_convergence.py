"""After any history (`convergence.py`), once nothing is due, each client's copy equals its repository's HEAD."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from deliveries_app.sync import drift
from tests.faults.clients import KINDS
from tests.faults.convergence import LONGEST_HISTORY, History, Player, draw
from tests.faults.hosts import FAULTS
from tests.faults.passing_time import draw_sequences_by_this_clock
from tests.faults.universe import Universe
from tests.faults.workers import Fate, use_short_timeouts
from tests.support import fast_flush

SEEDS: Sequence[int] = [12, 14, 21, 30, 40, 42, 59, 60, 380, 485]
"""Seeds whose histories together show everything in `HAPPEN`. `make soak` plays hundreds of others."""
EACH_FATE = History(
    seed=0,
    kinds=(0, 0),
    steps=tuple(
        step
        for kind in ("kill", "term", "freeze", "cut", "deadlock", "meanwhile")
        for step in [
            ("work_at_much", (0, (Fate(kind, at=8, in_statement=True), None), {"a": kind.encode(), "b": b"one"})),
            ("settle", ()),
        ]
    ),
    real_workers=False,
)
"""Each fate of a worker, at a statement that every sync reaches: how far a worker of a random history gets is up to chance."""
HAPPEN = {
    *(f"client: {kind.name}" for kind in KINDS),
    *(f"host {fault.name}" for fault in FAULTS),
    *(f"worker: {fate}" for fate in ("kill", "term", "freeze", "cut", "deadlock", "meanwhile")),
    *(
        "real workers",
        "death noticed",
        "bad neighbour",
        "mood",
        "force-push",
        "renamed to twins",
        "transforms switched",
    ),
    *("re-sync", "re-sync of all", "retry", "retry of all", "cancel", "cancel of an operation", "stop", "ignore rules"),
    *(
        "other branch pushed",
        "other branch merged",
        "tag moved",
        "branch or tag deleted",
        "other ref followed",
        "app's patterns",
    ),
    *("repository paused", "repository resumed"),
    *("base URL changed", "wrong base URL", "MAX_FILE_BYTES changed", "branch reset", "two at once"),
    "repository recreated",
    *("gradual re-sync", "cancel of a gradual operation", "held operation continued"),
    *("app paused", "app resumed", "all paused", "all resumed", "max_in_flight changed", "sync_completed wanted"),
    *("resend", "resend of many", "cancel of a resend"),
    *("unwatched, copy dropped", "unwatched, copy kept", "watched", "app deleted", "app imported", "circuit reset"),
    *(
        "copy damaged",
        "check for differences",
        "check of all",
        "check cancelled",
        "differences sent",
    ),
    *("repository token replaced", "app token rotated", "key rotation begun", "mirrors evicted", "mirror deleted"),
    *(
        "mirror truncated",
        "Redis flushed",
        "Redis restarted",
        "database restarted",
        "connections cut",
        "clock set back",
    ),
}
"""What must happen in these histories."""
if is_soak := "SEEDS" in os.environ:  # "first-last", set by `make soak`
    _first, _last = os.environ["SEEDS"].split("-")
    SEEDS = range(int(_first), int(_last) + 1)
_shrinks = "SHRINK" in os.environ
_without = frozenset(filter(None, os.environ.get("WITHOUT", "").split(",")))
KINDS[:] = [KINDS[0] if kind.name in _without else kind for kind in KINDS]


@pytest.fixture
def player(
    transactional_db: None, postgres_server, valkey_server, settings, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> Player:
    settings.REPOS_DIR = tmp_path / "repos"
    settings.RECORD_BATCH, settings.MAX_RETRY_ATTEMPTS, settings.RETRY_BASE_DELAY_SECONDS = 3, 3, 0
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    settings.CIRCUIT_BREAKER_THRESHOLD = 2
    settings.ATTEMPTS_PER_APP = 15
    monkeypatch.setattr(drift, "MAX_ENTRIES", 3)
    use_short_timeouts(monkeypatch)
    draw_sequences_by_this_clock(monkeypatch)
    make = functools.partial(Universe, database=postgres_server, redis=valkey_server)
    return Player(make, fast_flush.empty, tmp_path)


@pytest.mark.early(4)
@pytest.mark.timeout(LONGEST_HISTORY * len(SEEDS) * (100 if _shrinks else 1))  # shrinking plays a history for each step
def test_random_histories_converge_to_head(player: Player) -> None:
    histories = [draw(seed, _without) for seed in SEEDS]
    for history in histories if is_soak else [EACH_FATE, *histories]:
        error = player.play(history)
        if error and _shrinks:
            player.summary.diverged[str(history.seed)] += f"\n--- shorter ---\n{player.shrink(history, error)}"
        if "SUMMARY" in os.environ:  # after each, so that little is lost if this process is killed
            player.summary.write(Path(os.environ["SUMMARY"]))
    assert not player.summary.diverged, "\n\n".join(player.summary.diverged.values())
    assert is_soak or player.summary.events.keys() >= HAPPEN, HAPPEN - player.summary.events.keys()
