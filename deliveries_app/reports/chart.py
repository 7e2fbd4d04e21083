"""The geometry of a small bar chart: what a template draws as SVG, without script or style."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480.0, 100.0
_GAP = 0.3  # of a place
_LEAST = 2.0  # what is there at all can be seen


@dataclass(frozen=True)
class Bar:
    """One place of the chart. Good lies at the bottom, bad upon it, both on the same scale; `y` grows downwards."""

    place_x: float
    place_width: float
    x: float
    width: float
    good_y: float
    good_height: float
    bad_y: float
    bad_height: float


def stacked(values: Sequence[tuple[int, int]]) -> list[Bar]:
    """A bar for each watch of good and bad."""
    most = max((good + bad for good, bad in values), default=0) or 1
    place = WIDTH / max(1, len(values))
    return [_bar(index * place, place, _high(good, most), _high(bad, most)) for index, (good, bad) in enumerate(values)]


def _high(value: int, most: int) -> float:
    return max(_LEAST, HEIGHT * value / most) if value else 0.0


def _bar(left: float, place: float, good: float, bad: float) -> Bar:
    if good + bad > HEIGHT:  # a little of the one was lifted to what can be seen, beside much of the other
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
