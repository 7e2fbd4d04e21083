"""What histories and storms have shown, summed up over processes and over invocations of `make soak` on one commit."""

import fcntl
import json
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from tests.support.machine import machine

HERE = Path(__file__).resolve().parent
SUMS, REPORT = HERE / "RESULTS.json", HERE / "RESULTS.md"
STORM_SECONDS = 60


@dataclass
class Summary:
    """Counts over histories and storms.

    `duplicates` has the files sent twice for each kill of a history. `diverged` maps "12" or "storm 3" to the history and
    what was wrong. `first_seed` and `last_seed` are those of the histories, `seconds` the time of all processes.
    """

    version: str = ""
    first_seed: int = 0
    last_seed: int = -1
    histories: int = 0
    storms: int = 0
    storm_kills: int = 0
    notifications: int = 0
    seconds: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    duplicates: list[int] = field(default_factory=list)
    diverged: dict[str, str] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        return self.events["worker: kill"]

    def add(self, other: "Summary") -> None:
        if other.histories:
            self.first_seed = min(self.first_seed, other.first_seed) if self.histories else other.first_seed
            self.last_seed = max(self.last_seed, other.last_seed)
        self.histories += other.histories
        self.storms += other.storms
        self.storm_kills += other.storm_kills
        self.notifications += other.notifications
        self.seconds += other.seconds
        self.events += other.events
        self.duplicates += other.duplicates
        self.diverged |= other.diverged

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return what `write` has written, or an empty summary if there is no such file."""
        if not file.exists() or not (text := file.read_text()):
            return cls()
        stored = json.loads(text)
        return cls(**stored | {"events": Counter(stored["events"])})

    def write(self, file: Path) -> None:
        """Replace the file, so that it is whole even if this process is killed."""
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps(vars(self), indent=1, ensure_ascii=False) + "\n")
        unfinished.replace(file)


def version() -> str:
    """Return the last commit that changed anything but these results, and whether there are uncommitted changes."""
    others = ["--", ".", f":!{SUMS.relative_to(HERE.parents[1])}", f":!{REPORT.relative_to(HERE.parents[1])}"]
    commit = _git("log", "-1", "--format=%h", *others)
    return f"{commit} with changes" if _git("status", "--porcelain", *others) else commit


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=HERE.parents[1], capture_output=True, text=True, check=True
    ).stdout.strip()


def stored(commit: str) -> Summary:
    """Return the sums of this commit."""
    sums = Summary.read(SUMS)
    return sums if sums.version == commit else Summary(commit)


def add(summary: Summary, commit: str) -> None:
    """Add to the sums of this commit, and write the report. Several soaks may do so at once."""
    with _locked():
        sums = stored(commit)
        sums.add(summary)
        sums.write(SUMS)
        REPORT.write_text(report(sums))


@contextmanager
def _locked() -> Iterator[None]:
    with (HERE / "soak.py").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def report(sums: Summary) -> str:
    again = f"{statistics.median(sums.duplicates):g} and {max(sums.duplicates)}" if sums.duplicates else "—"
    diverged = f"{len(sums.diverged)}" + (f": {', '.join(sums.diverged)}" if sums.diverged else "")
    rows = [
        ("commit", sums.version),
        ("histories", f"{sums.histories:,}, seeds {sums.first_seed} to {sums.last_seed}"),
        ("workers killed (-9) in them", f"{sums.kills:,}"),
        (f"storms of {STORM_SECONDS} s over real workers", f"{sums.storms:,}"),
        ("busy workers and work-horses killed (-9) in them", f"{sums.storm_kills:,}"),
        ("divergences", diverged),
        ("notifications received", f"{sums.notifications:,}"),
        ("files sent twice per kill, median and maximum", again),
        ("duration", f"{sums.seconds / 60:.0f} minutes, summed over all processes, on {machine()}"),
    ]
    events = [(name, f"{count:,}") for name, count in sums.events.most_common()]
    return (
        "# Random histories\n\n"
        f"Written by `make soak` on {datetime.now(UTC):%Y-%m-%d}. `convergence.py` generates the histories, and "
        "`universe.py` is where\nthey happen. `invariants.py` and `journal.py` check what must hold at any time, and once "
        "nothing is due. `storm.py` kills\nreal workers. `RESULTS.json` has the same totals, and every diverged history.\n\n"
        f"{_table('', 'result', rows)}\n## Events\n\n{_table('event', 'count', events)}"
    )


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> str:
    return f"| {left} | {right} |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)
