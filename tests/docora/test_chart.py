"""Geometry of the bars in charts."""

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliveries_app.reports.chart import HEIGHT, WIDTH, heights, stacked

NUMBER = st.integers(0, 10**12)
RECTANGLE = re.compile(r"M(\S+) (\S+?)h(\S+?)v(\S+?)h-\S+?z")


def rectangles(path: str) -> list[tuple[float, ...]]:
    """Return x, y, width and height of each rectangle of a path."""
    return [tuple(map(float, found)) for found in RECTANGLE.findall(path)]


def test_highest_bar_fills_the_chart_and_sets_the_scale() -> None:
    highest, half, nothing = stacked([(60, 20), (40, 0), (0, 0)])
    assert (highest.good, highest.bad) == ("M24 25h112v75h-112z", "M24 0h112v25h-112zM24 103h112v3h-112z")
    assert (half.good, half.bad) == ("M184 50h112v50h-112z", "")
    assert (nothing.good, nothing.bad) == ("", "")


def test_one_failure_among_a_million_files_is_visible() -> None:
    assert heights((999_999, 1), 1_000_000, HEIGHT) == (98, 2)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not a failure
@given(NUMBER, NUMBER, NUMBER)
def test_parts_are_visible_and_stay_inside_the_chart(good: int, bad: int, more: int) -> None:
    lower, upper = heights((good, bad), good + bad + more, HEIGHT)
    assert (lower >= 2, upper >= 2) == (good > 0, bad > 0)
    assert lower + upper <= HEIGHT + 1e-9


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(NUMBER, NUMBER), max_size=24))
def test_bars_stay_inside_the_chart_and_do_not_overlap(values: list[tuple[int, int]]) -> None:
    bars = stacked(values)
    assert len(bars) == len(values)
    right = 0.0
    for bar, (good, bad) in zip(bars, values, strict=True):
        assert (bar.good != "", bar.bad != "") == (good > 0, bad > 0)
        end, bottom = right, HEIGHT
        for x, y, width, height in rectangles(bar.good) + rectangles(bar.bad)[:1]:  # without the mark below the chart
            assert right <= x
            assert y >= -0.02
            assert abs(y + height - bottom) < 0.03
            end, bottom = x + width, y
        right = end
    assert right <= WIDTH
