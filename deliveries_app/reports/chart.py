"""Geometry of small charts, as SVG paths."""

from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 480.0, 100.0
_GAP = 0.3  # share of a slot
_MARK_Y, _MARK_HEIGHT = 103.0, 3.0
SPARK_WIDTH, SPARK_HEIGHT = 3, 20  # units of one slot: a bar of two, and a gap
_MIN_HEIGHT = 2.0  # keeps nonzero values visible


class Bar(NamedTuple):
    """Paths of one slot: its area, the good part, and the bad part, stacked on the good one and marked below the chart."""

    area: str
    good: str
    bad: str


def stacked(values: Sequence[tuple[int, int]], *, shares: bool = False) -> list[Bar]:
    """Return one bar per (good, bad) value, all at the same scale. With `shares`, each is as high as the chart."""
    most = max(map(sum, values), default=0)
    slot = WIDTH / max(1, len(values))
    bars = []
    for index, value in enumerate(values):
        good, bad = heights(value, sum(value) if shares else most, HEIGHT)
        x, width = slot * (index + _GAP / 2), slot * (1 - _GAP)
        mark = _rectangle(x, _MARK_Y, width, _MARK_HEIGHT) if bad else ""
        bars.append(
            Bar(
                area=_rectangle(slot * index, 0.0, slot, _MARK_Y + _MARK_HEIGHT),
                good=_rectangle(x, HEIGHT - good, width, good),
                bad=_rectangle(x, HEIGHT - good - bad, width, bad) + mark,
            )
        )
    return bars


def sparkline(values: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Return the paths of the good and the bad parts of a row of stacked bars, in whole units.

    Each slot is `SPARK_WIDTH` wide, the highest bar `SPARK_HEIGHT` high. A path is empty if there is nothing to draw.
    """
    most = max(map(sum, values), default=0)
    goods, bads = "", ""
    for index, value in enumerate(values):
        good, bad = map(round, heights(value, most, SPARK_HEIGHT))
        goods += _rectangle(SPARK_WIDTH * index, SPARK_HEIGHT - good, SPARK_WIDTH - 1, good)
        bads += _rectangle(SPARK_WIDTH * index, SPARK_HEIGHT - good - bad, SPARK_WIDTH - 1, bad)
    return goods, bads


def heights(value: tuple[int, int], most: int, height: float) -> tuple[float, float]:
    """Return the heights of the good and the bad part, if `most` is as high as the chart. No part is too small to see."""
    good, bad = (max(_MIN_HEIGHT, height * part / most) if part else 0.0 for part in value)
    excess = max(0.0, good + bad - height)  # the smaller part was raised
    return (good - excess, bad) if good > bad else (good, bad - excess)


def steps(values: Sequence[float | None]) -> str:
    """Return the path of a line with one step per value, and a gap for None. The greatest value is at the top."""
    most = max((value for value in values if value), default=0.0) or 1.0
    slot = WIDTH / max(1, len(values))
    parts, is_drawing = [], False
    for index, value in enumerate(values):
        if value is not None:
            y = round(HEIGHT - HEIGHT * value / most, 2)
            parts.append(f"{f'V{y:g}' if is_drawing else f'M{index * slot:g} {y:g}'}H{(index + 1) * slot:g}")
        is_drawing = value is not None
    return "".join(parts)


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    """Return the path of a rectangle; empty if it has no height."""
    return f"M{x:g} {y:g}h{width:g}v{height:g}h-{width:g}z" if height else ""
