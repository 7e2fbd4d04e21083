"""Geometry of the bars in charts."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliveries_app.reports.chart import HEIGHT, WIDTH, stacked

VALUES = st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=24)


def test_highest_bar_fills_the_chart_and_sets_the_scale() -> None:
    highest, half, nothing = stacked([(60, 20), (40, 0), (0, 0)])
    assert (highest.good_height, highest.bad_height, highest.bad_y) == (75, 25, 0)
    assert (half.good_height, half.good_y, half.bad_height) == (50, 50, 0)
    assert (nothing.good_height, nothing.bad_height) == (0, 0)


def test_one_failure_among_a_million_files_is_visible() -> None:
    bar = stacked([(999_999, 1)])[0]
    assert bar.bad_height == 2
    assert (bar.good_height, bar.bad_y) == (98, 0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(VALUES)
def test_bars_stay_inside_the_chart_and_do_not_overlap(values: list[tuple[int, int]]) -> None:
    bars = stacked(values)
    assert len(bars) == len(values)
    right = 0.0
    for bar, (good, bad) in zip(bars, values, strict=True):
        assert right <= bar.x
        right = bar.x + bar.width
        assert (bar.good_height > 0, bar.bad_height > 0) == (good > 0, bad > 0)
        assert -0.02 <= bar.bad_y <= bar.good_y
        assert bar.good_y + bar.good_height <= HEIGHT + 0.02
        assert abs(bar.bad_y + bar.bad_height - bar.good_y) < 0.03
    assert right <= WIDTH
