"""Geometry of a small bar chart that a template renders as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480.0, 100.0
_GAP = 0.3  # share of a slot
_LEAST = 2.0  # keeps nonzero values visible


@dataclass(frozen=True)
class Bar:
    """One slot of the chart: good at the bottom, bad stacked on top, same scale; `y` grows downwards."""

    place_x: float
    place_width: float
    x: float
    width: float
    good_y: float
    good_height: float
    bad_y: float
    bad_height: float


def stacked(values: Sequence[tuple[int, int]]) -> list[Bar]:
    """Return one bar per (good, bad) value."""
    most = max((good + bad for good, bad in values), default=0) or 1
    place = WIDTH / max(1, len(values))
    return [_bar(index * place, place, _high(good, most), _high(bad, most)) for index, (good, bad) in enumerate(values)]


def _high(value: int, most: int) -> float:
    return max(_LEAST, HEIGHT * value / most) if value else 0.0


def _bar(left: float, place: float, good: float, bad: float) -> Bar:
    if good + bad > HEIGHT:  # the smaller part was raised to the visible minimum
        good, bad = (HEIGHT - bad, bad) if good > bad else (good, HEIGHT - good)
    top = HEIGHT - good
    return Bar(
        place_x=round(left, 2),
        place_width=round(place, 2),
        x=round(left + place * _GAP / 2, 2),
        width=round(place * (1 - _GAP), 2),
        good_y=round(top, 2),
        good_height=round(good, 2),
        bad_y=round(top - bad, 2),
        bad_height=round(bad, 2),
    )
