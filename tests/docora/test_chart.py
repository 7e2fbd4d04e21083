"""Geometry of the bars in charts."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliveries_app.reports.chart import HEIGHT, heights, stacked

NUMBER = st.integers(0, 10**12)


def test_highest_bar_fills_the_chart_and_sets_the_scale() -> None:
    highest, half, nothing = stacked([(60, 20), (40, 0), (0, 0)])
    assert (highest.good, highest.bad) == ("M24 25h112v75h-112z", "M24 0h112v25h-112zM24 103h112v3h-112z")
    assert (half.good, half.bad) == ("M184 50h112v50h-112z", "")
    assert (nothing.good, nothing.bad) == ("", "")


def test_one_failure_among_a_million_files_is_visible() -> None:
    assert heights((999_999, 1), 1_000_000, HEIGHT) == (98, 2)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(NUMBER, NUMBER, NUMBER)
def test_parts_are_visible_and_stay_inside_the_chart(good: int, bad: int, more: int) -> None:
    lower, upper = heights((good, bad), good + bad + more, HEIGHT)
    assert (lower >= 2, upper >= 2) == (good > 0, bad > 0)
    assert lower + upper <= HEIGHT + 1e-9
