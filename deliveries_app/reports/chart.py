"""Geometry of small charts that templates render as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480.0, 100.0
_GAP = 0.3  # share of a slot
_MIN_HEIGHT = 2.0  # keeps nonzero values visible


@dataclass(frozen=True)
class Bar:
    """One slot of the chart. The bad part is stacked on the good one, at the same scale. y coordinates grow downwards."""

    slot_x: float
    slot_width: float
    x: float
    width: float
    good_y: float
    good_height: float
    bad_y: float
    bad_height: float


def stacked(values: Sequence[tuple[int, int]], *, shares: bool = False) -> list[Bar]:
    """Return one bar per (good, bad) value, all at the same scale. With `shares`, each is as high as the chart."""
    most = max((good + bad for good, bad in values), default=0)
    slot = WIDTH / max(1, len(values))
    return [
        _bar(index * slot, slot, good, bad, good + bad if shares else most) for index, (good, bad) in enumerate(values)
    ]


def _bar(left: float, slot: float, good: int, bad: int, most: int) -> Bar:
    upper, lower = (max(_MIN_HEIGHT, HEIGHT * value / most) if value else 0.0 for value in (bad, good))
    if upper + lower > HEIGHT:  # the smaller part was raised to the visible minimum
        upper, lower = (upper, HEIGHT - upper) if lower > upper else (HEIGHT - lower, lower)
    return Bar(
        slot_x=round(left, 2),
        slot_width=round(slot, 2),
        x=round(left + slot * _GAP / 2, 2),
        width=round(slot * (1 - _GAP), 2),
        good_y=round(HEIGHT - lower, 2),
        good_height=round(lower, 2),
        bad_y=round(HEIGHT - lower - upper, 2),
        bad_height=round(upper, 2),
    )


SPARK_WIDTH, SPARK_HEIGHT = 3, 20  # units of one slot: a bar of two, and a gap


def sparkline(values: Sequence[tuple[int, int]]) -> tuple[str, str]:
    """Return the SVG paths of the good and the bad parts of a row of stacked bars, in whole units.

    Each slot is `SPARK_WIDTH` wide, the highest bar `SPARK_HEIGHT` high. A path is empty if there is nothing to draw.
    """
    most = max((good + bad for good, bad in values), default=0)
    paths: tuple[list[str], list[str]] = [], []
    for index, parts in enumerate(values):
        heights = [max(2, round(SPARK_HEIGHT * value / most)) if value else 0 for value in parts]
        heights[heights.index(max(heights))] -= max(0, sum(heights) - SPARK_HEIGHT)  # the smaller part was raised
        top = SPARK_HEIGHT
        for path, height in zip(paths, heights, strict=True):
            top -= height
            if height:
                path.append(f"M{index * SPARK_WIDTH} {top}h2v{height}h-2z")
    return "".join(paths[0]), "".join(paths[1])


def steps(values: Sequence[float | None]) -> str:
    """Return the SVG path of a line with one step per value, and a gap for None. The greatest value is at the top."""
    most = max((value for value in values if value), default=0.0) or 1.0
    slot = WIDTH / max(1, len(values))
    parts, is_drawing = [], False
    for index, value in enumerate(values):
        if value is not None:
            y = round(HEIGHT - HEIGHT * value / most, 2)
            parts.append(f"{f'V{y:g}' if is_drawing else f'M{index * slot:g} {y:g}'}H{(index + 1) * slot:g}")
        is_drawing = value is not None
    return "".join(parts)
