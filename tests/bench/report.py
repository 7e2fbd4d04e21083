"""Show the measurements as a table on the terminal, and write them to `RESULTS.md` with charts."""

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
    """One measurement: the work, its result, the goal, whether it was reached, and a remark that explains the result."""

    work: str
    result: str
    goal: str
    reached: bool
    remark: str = ""


@dataclass(frozen=True)
class Chart:
    """A line chart, written to `{name}.svg`."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]


def show(rows: Sequence[Row]) -> None:
    table = Table("", "work", "result", "goal", "remark", show_lines=True)
    for row in rows:
        table.add_row("[green]✓" if row.reached else "[red]✗", row.work, row.result, row.goal, row.remark)
    Console(width=170).print(table)


def write(rows: Sequence[Row], charts: Sequence[Chart]) -> None:
    """Write `RESULTS.md` and the charts next to it."""
    where = (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Worker, database, Redis, git server and receiver share the machine. "
        "The database does not wait for the disk."
    )
    lines = ["# Results of `make bench`", "", where, "", "| | work | result | goal | remark |"]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        cells = ("✓" if row.reached else "✗", row.work, row.result, row.goal, row.remark)
        lines.append(f"| {' | '.join(cells)} |")
    for chart in charts:
        (HERE / f"{chart.name}.svg").write_text(svg(chart.title, chart.x_label, chart.y_label, chart.lines))
        lines += ["", f"![{chart.title}]({chart.name}.svg)"]
        for line in chart.lines:
            points = ", ".join(f"{x:,.10g}: {y:,.4g}" for x, y in line.points)
            lines += ["", f"{line.name} ({chart.y_label}, by {chart.x_label}): {points}"]
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")
