"""Rows of the performance table, and what becomes of them: a table on the terminal, `RESULTS.md`, charts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.lines import Line, svg
from tests.support.machine import machine

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Row:
    """One measurement: what was done, what came out, what it must reach and whether it did; and what explains it."""

    work: str
    result: str
    goal: str
    reached: bool
    remark: str = ""


@dataclass(frozen=True)
class Chart:
    """Lines over one scale of numbers, for `{name}.svg`."""

    name: str
    title: str
    across: str
    up: str
    lines: Sequence[Line]


def show(rows: Sequence[Row]) -> None:
    table = Table("", "work", "result", "must reach", "remark", show_lines=True)
    for row in rows:
        table.add_row("[green]✓" if row.reached else "[red]✗", row.work, row.result, row.goal, row.remark)
    Console(width=170).print(table)


def write(rows: Sequence[Row], charts: Sequence[Chart]) -> None:
    """`RESULTS.md` and the charts beside it."""
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Worker, database, Redis, git server and receiver share the machine; "
        "the database does not wait for the disk."
    )
    lines = ["# What `make bench` measured", "", where, "", "| | work | result | must reach | remark |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        cells = ("✓" if row.reached else "✗", row.work, row.result, row.goal, row.remark)
        lines.append(f"| {' | '.join(cells)} |")
    for chart in charts:
        (HERE / f"{chart.name}.svg").write_text(svg(chart.title, chart.across, chart.up, chart.lines))
        lines += ["", f"![{chart.title}]({chart.name}.svg)"]
        for line in chart.lines:
            points = ", ".join(f"{x:,.10g}: {y:,.4g}" for x, y in line.points)
            lines += ["", f"{line.name} ({chart.up}, by {chart.across}): {points}"]
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")
