"""Real workers and a real sweep, while everything happens that can happen, and workers are killed (-9) and frozen.

`make soak` runs it; `make test` does not. Afterwards, every client's copy equals HEAD.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deliveries_app.models import AppRepository
from tests.faults import invariants
from tests.faults.clients import KINDS
from tests.faults.convergence import ACTIONS, DRAWN
from tests.faults.summary import Summary
from tests.faults.universe import PLACES, Universe
from tests.support.processes import Daemon, Daemons, children
from tests.support.receiver import wait_for

SECONDS = float(os.environ.get("STORM_SECONDS", "20"))
SEED = int(os.environ.get("STORM_SEED", "1"))
CALM_SECONDS = 180.0  # a client may handle a dead worker's requests for half a minute, and retries take a while
LEASE_SECONDS = 6.0
NOT_HERE = {
    "work", "work_at_much", "work_for_real", "bad_neighbour", "settle",  # the workers are here already
    "time_passes", "clock_goes_back",  # leases are held
    "transform", "database_restarts", "mood",
}  # fmt: skip
WEIGHTS = {name: weight for name, (weight, _) in ACTIONS.items() if name not in NOT_HERE} | {
    "cut_connections": 1.0, "force_push": 14.0, "change": 8.0, "resync": 14.0, "resync_all": 8.0, "watch": 10.0,
    "resume": 8.0, "resume_everything": 8.0, "pause": 1.0, "pause_one": 1.0, "resume_one": 8.0, "pause_everything": 0.5, "host_behaves": 3.0,
    "move_endpoint": 4.0, "reset_to": 2.0,
}  # fmt: skip
"""A minute of real time has less room for pauses and outages than a history, or the workers have nothing to do."""
PATIENT = [number for number, kind in enumerate(KINDS) if not kind.refuses_with]  # refused ones wait for ten seconds


@pytest.fixture
def daemons(instance_environment: dict[str, str], tmp_path: Path, settings) -> Iterator[Daemons]:
    settings.REPOS_DIR = tmp_path / "repos"
    settings.LEASE_SECONDS = LEASE_SECONDS
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    changed = {
        "REPOS_DIR": str(settings.REPOS_DIR),
        "LEASE_SECONDS": str(LEASE_SECONDS),
        "SWEEP_INTERVAL_SECONDS": "1",
        "RESCAN_INTERVAL_SECONDS": "4",
        "RESCAN_MIN_INTERVAL_SECONDS": "1",
        "CIRCUIT_BREAKER_COOLDOWN_SECONDS": "4",
        "RETRY_BASE_DELAY_SECONDS": "0.5",
        "RECORD_BATCH": "3",
        "CHUNK_THRESHOLD_BYTES": "200",
        "CHUNK_SIZE_BYTES": "150",
    }
    daemons = Daemons(tmp_path, instance_environment | changed)
    yield daemons
    daemons.close()


class Machine:
    """Two workers of one machine. `kills` counts those that were killed while busy."""

    def __init__(self, daemons: Daemons, rng: random.Random) -> None:
        self._daemons, self._rng = daemons, rng
        self._workers: list[Daemon] = []
        self._frozen: list[tuple[float, int]] = []
        self.kills = 0
        self.look_after()

    def look_after(self) -> None:
        """Start workers in place of those that have died, and wake up those that were frozen for long enough."""
        self._workers = [worker for worker in self._workers if worker.running]
        while len(self._workers) < 2:
            queues = ("high", "low", "default") if self._workers else ()
            self._workers.append(self._daemons.worker(*queues))
        for frozen in [one for one in self._frozen if one[0] < time.monotonic()]:
            self._frozen.remove(frozen)
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(frozen[1], signal.SIGCONT)

    def wake_all(self) -> None:
        self._frozen = [(0.0, pid) for _, pid in self._frozen]
        self.look_after()

    def kill_one(self) -> None:
        """Kill a worker, a busy one if there is one, or its work-horse."""
        busy = [worker for worker in self._workers if any(children(worker.pid))]
        worker = self._rng.choice(busy or self._workers)
        horse = next(children(worker.pid), 0)
        self.kills += bool(horse)
        if horse and self._rng.random() < 0.5:
            self._frozen = [one for one in self._frozen if one[1] != horse]
            os.kill(horse, signal.SIGKILL)
        else:
            self._frozen = [one for one in self._frozen if one[1] not in children(worker.pid)]
            worker.kill()

    def freeze_one(self) -> bool:
        """Freeze a work-horse for longer than a lease. Return False if there is none."""
        horse = next(children(self._rng.choice(self._workers).pid), 0)
        if horse and horse not in [pid for _, pid in self._frozen]:
            os.kill(horse, signal.SIGSTOP)
            self._frozen.append((time.monotonic() + LEASE_SECONDS + 2, horse))
        return bool(horse)


def check_shown(universe: Universe) -> None:
    """What is shown as synced really is, while workers run: a difference counts if the row has not changed meanwhile."""
    for watch in universe.alive():
        try:
            invariants.check_shown_as_synced(universe, watch)
        except AssertionError:
            now = AppRepository.objects.filter(pk=watch.pk, ended_at=None).first()
            if now and (now.status, now.fencing_token, now.request_count) == (
                watch.status, watch.fencing_token, watch.request_count,
            ):  # fmt: skip
                raise


@pytest.mark.timeout(SECONDS + CALM_SECONDS + 120)
def test_storm(daemons: Daemons, postgres_server, valkey_server, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    kinds = rng.choice(PATIENT), rng.choice(PATIENT)
    universe = Universe(tmp_path, postgres_server, valkey_server, kinds, real_workers=True)
    try:
        sweep = daemons.sweep()
        kills = rage(universe, daemons, rng)
        assert sweep.running
        calm_down(universe)
    finally:
        universe.close()
    assert "Traceback" not in daemons.logs(), daemons.logs().partition("Traceback")[2][:3000]
    if summary := os.environ.get("SUMMARY"):
        found = Summary(storms=1, storm_kills=kills, events=universe.events, notifications=len(universe.clients.log))
        found.write(Path(summary))


def rage(universe: Universe, daemons: Daemons, rng: random.Random) -> int:
    """Return how many busy workers were killed."""
    universe.slowness = 0.03  # otherwise workers are hardly ever busy
    machine = Machine(daemons, rng)
    may_freeze = all(kind.sequences for kind in universe.clients.kinds.values())
    ends_at = time.monotonic() + SECONDS
    while time.monotonic() < ends_at:
        time.sleep(rng.uniform(0.05, 0.4))
        machine.look_after()
        what = rng.random()
        if what < 0.25:
            machine.kill_one()
        elif what < 0.3 and may_freeze:
            if machine.freeze_one():
                universe.journal.zombies |= {
                    (app.app_id, repo.name) for app in universe.apps for repo in universe.repos
                }
        elif what < 0.4:
            universe.mood(rng.randrange(2**32), rng.choice([0.0, 0.1, 0.3]), is_busy=False)
        else:
            [name] = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            universe.happen((name, DRAWN[name](rng)))
        check_shown(universe)
    machine.wake_all()
    return machine.kills


def calm_down(universe: Universe) -> None:
    """Once nothing fails and a person has requested what would wait for an hour, everything is delivered."""
    for place in range(len(PLACES)):
        universe.make_peace(place)
        universe.resync(place)

    try:
        wait_for(lambda: not universe.describe(), CALM_SECONDS, 0.2)
    except AssertionError as error:
        raise AssertionError(f"not calm within {CALM_SECONDS:.0f} seconds: {universe.describe()}") from error
    invariants.check_at_rest(universe)
