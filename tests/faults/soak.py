"""`make soak`: run many random histories, then storms. Each process has its own seed, database and Redis.

    make soak SOAK_ARGS="--histories 1000 --storms 10"
    make soak SOAK_ARGS="--minutes 60 --first-seed 7000"

Prints the results and writes them to `tests/faults/RESULTS.md`. To repeat a seed that found a divergence:
`HISTORIES=25 make test PYTEST_ARGS="tests/faults/test_convergence.py --hypothesis-seed=7012"`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.support.machine import machine

HERE = Path(__file__).resolve().parent
PER_SEED = 25
STORM_SECONDS = 60


@dataclass
class Soak:
    """The results of all seeds so far. `diverged` maps a seed to the errors that pytest printed."""

    seeds: list[int] = field(default_factory=list)
    histories: int = 0
    notifications: int = 0
    events: Counter[str] = field(default_factory=Counter)
    duplicates: list[int] = field(default_factory=list)
    diverged: dict[int, str] = field(default_factory=dict)
    storms: int = 0
    storm_kills: int = 0
    storms_diverged: dict[int, str] = field(default_factory=dict)

    def add(self, seed: int, summary: Path, output: str, failed: bool) -> None:
        self.seeds.append(seed)
        if failed:
            self.diverged[seed] = _errors_of(output)
        if summary.exists():
            found = json.loads(summary.read_text())
            self.histories += found["histories"]
            self.notifications += found["notifications"]
            self.events += Counter(found["events"])
            self.duplicates += found["duplicates"]

    def add_storm(self, seed: int, summary: Path, output: str, failed: bool) -> None:
        self.storms += 1
        if failed:
            self.storms_diverged[seed] = _errors_of(output)
        if summary.exists():
            found = json.loads(summary.read_text())
            self.storm_kills += found["kills"]
            self.notifications += found["notifications"]


def _errors_of(output: str) -> str:
    return "\n".join(line for line in output.splitlines() if line.startswith(("E ", "tests/")))


def run_seed(seed: int, folder: Path) -> tuple[Path, str, bool]:
    summary = folder / f"{seed}.json"
    return _run("test_convergence.py", {"HISTORIES": str(PER_SEED)}, summary, f"--hypothesis-seed={seed}")


def run_storm(seed: int, folder: Path) -> tuple[Path, str, bool]:
    variables = {"STORM_SEED": str(seed), "STORM_SECONDS": str(STORM_SECONDS)}
    return _run("storm.py", variables, folder / f"storm-{seed}.json")


def _run(file: str, variables: dict[str, str], summary: Path, *options: str) -> tuple[Path, str, bool]:
    environment = os.environ | variables | {"SUMMARY": str(summary)}
    command = [sys.executable, "-m", "pytest", "-q", *options, str(HERE / file)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return summary, done.stdout, done.returncode != 0


def report(soak: Soak, seconds: float) -> str:
    kills = len(soak.duplicates)
    again = f"{statistics.median(soak.duplicates):g} and {max(soak.duplicates)}" if kills else "—"
    rows = [
        ("histories", f"{soak.histories:,}"),
        ("seeds", f"{min(soak.seeds)} to {max(soak.seeds)}, at least {PER_SEED} histories each"),
        (
            "divergences",
            f"{len(soak.diverged)}" + (f": seeds {', '.join(map(str, soak.diverged))}" if soak.diverged else ""),
        ),
        ("notifications received", f"{soak.notifications:,}"),
        ("workers killed (-9) while sending", f"{kills:,}"),
        ("files sent twice per kill, median and maximum", again),
        (f"storms of {STORM_SECONDS} s over real workers", f"{soak.storms:,}"),
        ("busy workers and work-horses killed (-9) in them", f"{soak.storm_kills:,}"),
        ("storms that diverged", f"{len(soak.storms_diverged)}"),
        ("duration", f"{seconds / 60:.0f} minutes on {machine()}"),
    ]
    events = [(name, f"{count:,}") for name, count in soak.events.most_common()]
    return (
        "# Random histories\n\n"
        f"Written by `make soak` on {datetime.now(UTC):%Y-%m-%d}. `convergence.py` generates the histories. `journal.py` checks what\n"
        "must hold at any time, and `universe.py` what must hold once nothing is due. `storm.py` kills real workers.\n\n"
        f"{_table('', 'result', rows)}\n## Events\n\n{_table('event', 'count', events)}"
    )


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> str:
    return f"| {left} | {right} |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--histories", type=int, default=1000, help="number of histories")
    parser.add_argument("--storms", type=int, default=4, help=f"number of storms, of {STORM_SECONDS} seconds each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new seed after this time")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel processes")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + -(-options.histories // PER_SEED))
    began = time.monotonic()
    soak = Soak()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:

        def one(seed: int) -> None:
            if time.monotonic() - began < options.minutes * 60:
                soak.add(seed, *run_seed(seed, Path(folder)))
                state = "DIVERGED" if seed in soak.diverged else "ok"
                print(f"seed {seed}: {state}; {soak.histories:,} histories, {len(soak.duplicates):,} kills", flush=True)

        def storm(seed: int) -> None:
            soak.add_storm(seed, *run_storm(seed, Path(folder)))
            state = "DIVERGED" if seed in soak.storms_diverged else "ok"
            print(f"storm {seed}: {state}; {soak.storm_kills:,} kills", flush=True)

        list(pool.map(one, seeds))
        list(pool.map(storm, range(options.first_seed, options.first_seed + options.storms)))
    text = report(soak, time.monotonic() - began)
    print(text)
    for seed, output in soak.diverged.items():
        print(f"--- seed {seed} ---\n{output}")
    for seed, output in soak.storms_diverged.items():
        print(f"--- storm {seed} ---\n{output}")
    (HERE / "RESULTS.md").write_text(text)
    sys.exit(1 if soak.diverged or soak.storms_diverged else 0)


if __name__ == "__main__":
    main()
