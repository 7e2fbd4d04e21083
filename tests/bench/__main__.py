"""`make bench`: measure speed and memory on this machine, and compare them with Docora's goals and with bare libcurl.

`BENCH_ARGS="--only check,resync"` runs only these measurements. `--most 100000` limits the size of the repositories. Only
a complete run writes `RESULTS.md` and its charts.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

from tests.bench import changes, drift, kills, many, memory, polling, report, resyncs, sending, tenants
from tests.bench.report import Chart, Row
from tests.bench.stage import PROJECT, Stage, open_stage


def recording(stage: Stage) -> Iterator[Row]:
    """Run each database in its own process, since a process can only use one."""
    for database, limit in (("postgres", 20), ("sqlite", 50)):
        command = [sys.executable, "-m", "tests.bench.recording", database]
        done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, check=True)
        found, name = json.loads(done.stdout.splitlines()[-1]), "PostgreSQL" if database == "postgres" else "SQLite"
        spent, failed = found["acknowledged"], found["failed"]
        yield Row(
            f"Announcing and recording a file, {name}",
            f"{spent:.1f} µs of the worker's CPU",
            f"≤ {limit} µs",
            spent <= limit,
        )
        yield Row(
            f"Announcing and recording a file that failed, with its attempt, {name}",
            f"{failed:.0f} µs of the worker's CPU",
            "≤ 1,000 µs",
            failed <= 1000,
            "most of it removes secrets from the request and the response",
        )
        if "plain" in found:
            more = found["with_columns"] - found["plain"]
            yield Row(
                "Recording the last success in the columns of a delivery",
                f"{more:+.1f} µs for each file, {found['plain']:.1f} µs without",
                "≤ 10 µs, a tenth of a first sync",
                more <= 10,
                "the whole time of acknowledging a batch, with PostgreSQL's own work",
            )


def many_on_sqlite(stage: Stage) -> Iterator[Row]:
    done = subprocess.run([sys.executable, "-m", "tests.bench.many"], cwd=PROJECT, stdout=subprocess.PIPE, check=True)
    yield from (Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith(b'{"work'))


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", metavar="NAMES", help="separated by commas")
    parser.add_argument(
        "--most", metavar="N", type=int, default=memory.SIZES[-1], help="files in the largest repository"
    )
    options = parser.parse_args()
    jobs: dict[int, Mapping[str, float]] = {}
    measurements: dict[str, Callable[[Stage], Iterator[Row]]] = {
        "first": sending.first_sync,
        "workers": sending.several_workers,
        "check": changes.checks,
        "changes": changes.twenty_files,
        "clear": resyncs.clear,
        "resync": resyncs.all_of_an_app,
        "larger-repositories": many.larger_repositories,
        "many-repositories": many.small_repositories,
        "many-on-sqlite": many_on_sqlite,
        "many-workers": many.several_workers,
        "worker-memory": many.memory_after_many,
        "idle": many.idle_instance,
        "kills": kills.worker_killed,
        "tenants": tenants.push_beside_others,
        "drift": drift.equal_files,
        "polls": polling.open_bars,
        "recording": recording,
        "large-file": memory.one_large_file,
        "memory": lambda stage: memory.by_size(stage, jobs, options.most),
    }
    every = [*measurements, "in-flight"]
    wanted = options.only.split(",") if options.only else every
    if unknown := set(wanted) - set(every):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(every)}")
    rows: list[Row] = []
    charts: list[Chart] = []
    with open_stage() as stage:
        for name in wanted:
            print(f"{name} …", file=sys.stderr, flush=True)
            stage.clear()
            if name == "in-flight":
                charts.append(sending.in_flight(stage))
                for line in charts[-1].lines:
                    points = ", ".join(f"{y:,.0f} at {x:g}" for x, y in line.points)
                    print(f"  {charts[-1].title}, {line.name}: {points}", file=sys.stderr, flush=True)
            else:
                for row in measurements[name](stage):
                    print(f"  {row.work}: {row.result} ({row.goal})", file=sys.stderr, flush=True)
                    rows.append(row)
    report.show(rows)
    if not options.only and options.most == memory.SIZES[-1]:
        report.write(rows, [memory.chart(jobs), *charts])


if __name__ == "__main__":
    main()
