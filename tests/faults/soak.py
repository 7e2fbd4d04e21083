"""`make soak`: play many random histories, then storms. Each process has its own seeds, database and Redis.

    make soak SOAK_ARGS="--histories 2000 --storms 10"
    make soak SOAK_ARGS="--minutes 60 --first-seed 7000"

A history is given by its seed, and a soak continues after the last seed that was played on the same commit. The sums of a
commit are in `tests/faults/RESULTS.json` and `tests/faults/RESULTS.md`, over all soaks. However a soak ends, it leaves no
process and no folder behind. To repeat a history, and to find a shorter one that diverges in the same way:
`make soak SOAK_ARGS="--shrink 7012"`.
"""

import argparse
import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from docora.process import die_with_parent
from tests.faults import summary
from tests.faults.summary import HERE, STORM_SECONDS, Summary
from tests.support.servers import ScratchFolder

PER_PROCESS = 50  # histories


class Soak:
    """Runs the processes. Their files are in one scratch folder, which is removed when the last of them has ended."""

    def __init__(self, minutes: float, without: str) -> None:
        self._ends_at = time.monotonic() + minutes * 60
        self._without = without
        self._scratch = ScratchFolder()
        self._running: set[subprocess.Popen[str]] = set()
        self.commit = summary.version()
        self.sums = Summary(self.commit)

    def histories(self, seeds: range) -> None:
        self._run("test_convergence.py", f"{seeds[0]}-{seeds[-1]}", {"SEEDS": f"{seeds[0]}-{seeds[-1]}"})

    def storm(self, seed: int) -> None:
        self._run("storm.py", f"storm {seed}", {"STORM_SEED": str(seed), "STORM_SECONDS": str(STORM_SECONDS)})

    def shrink(self, seed: int) -> None:
        self._run("test_convergence.py", str(seed), {"SEEDS": f"{seed}-{seed}", "SHRINK": "yes"})

    def close(self) -> None:
        """End what still runs. What its histories have shown so far is kept."""
        self._ends_at = 0.0
        for process in list(self._running):
            process.kill()
            process.wait()
        self._scratch.close()

    def _run(self, test: str, name: str, variables: dict[str, str]) -> None:
        """Run a test in a process of its own, and add what it has found."""
        if time.monotonic() > self._ends_at:  # or this soak is being ended
            return
        folder = self._scratch.make(name.replace(" ", "-"))
        variables |= {
            "SUMMARY": str(folder / "summary.json"),
            "TMPDIR": str(self._scratch.path),
            "WITHOUT": self._without,
        }
        options = ["-q", "-p", "no:logging", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}"]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(HERE / test)],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[self._scratch.lock],
            preexec_fn=functools.partial(die_with_parent, signal.SIGKILL),
        )
        self._running.add(process)
        output, _ = process.communicate()
        self._running.discard(process)
        found = Summary.read(folder / "summary.json")
        if process.returncode and not found.diverged and self._ends_at:
            errors = "\n".join(line for line in output.splitlines() if line.startswith("E  "))
            found.diverged[name] = f"{errors[:2000]}\n\n{output[-4000:]}"
        found.seconds = time.monotonic() - began
        self.sums.add(found)
        summary.add(found, self.commit)
        state = f"DIVERGED: {', '.join(found.diverged)}" if found.diverged else "ok"
        print(f"{name}: {state}; {self.sums.histories:,} histories, {self.sums.kills:,} kills", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--histories", type=int, default=1000, help="number of histories")
    parser.add_argument("--storms", type=int, default=4, help=f"number of storms, of {STORM_SECONDS} seconds each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after this time")
    parser.add_argument("--first-seed", type=int, help="default: continue after the last one on this commit")
    parser.add_argument(
        "--without",
        default="",
        help="actions (convergence.py) and clients (clients.py) to leave out, separated by commas",
    )
    parser.add_argument("--shrink", type=int, metavar="SEED", help="play only this one, and shorten it if it diverges")
    # Workers wait for clients most of the time.
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="parallel processes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    soak = Soak(options.minutes, options.without)
    first = options.first_seed
    if first is None:
        first = summary.stored(soak.commit).last_seed + 1
    ends = first + options.histories
    blocks = [range(start, min(start + PER_PROCESS, ends)) for start in range(first, ends, PER_PROCESS)]
    pool = ThreadPoolExecutor(options.jobs)
    try:
        if options.shrink is not None:
            soak.shrink(options.shrink)
        else:
            list(pool.map(soak.histories, blocks))
            list(pool.map(soak.storm, range(first, first + options.storms)))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        soak.close()
    print(summary.report(soak.sums))
    for name, text in soak.sums.diverged.items():
        print(f"--- {name} ---\n{text}\n")
    sys.exit(1 if soak.sums.diverged else 0)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
