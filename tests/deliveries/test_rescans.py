"""How often HEAD is asked for: half of the time since a repository last moved, between two settings."""

from datetime import timedelta

import pytest
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.models import AppRepository
from deliveries_app.scheduling import next_check
from tests.support.staff import make_app, make_watch
from tests.support.world import World

MINUTE = 60


@pytest.fixture(autouse=True)
def between_half_a_minute_and_an_hour(settings) -> None:
    settings.RESCAN_MIN_INTERVAL_SECONDS, settings.RESCAN_INTERVAL_SECONDS = 30, 60 * MINUTE


def pauses(moved: timedelta | None, *, watched: timedelta = timedelta(days=400), many: int = 1) -> list[float]:
    """The seconds until the next check of watches that moved so long ago."""
    app = make_app("Portal")
    for number in range(many):
        make_watch(app, f"repository-{number}")
    AppRepository.objects.update(moved_at=None if moved is None else Now() - moved, created_at=Now() - watched)
    AppRepository.objects.update(next_check_at=next_check(), last_scanned_at=Now())
    return [
        watch.next_check_at.timestamp() - watch.last_scanned_at.timestamp() for watch in AppRepository.objects.all()
    ]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("moved", "seconds"),
    [
        (timedelta(0), 30),
        (timedelta(seconds=40), 30),
        (timedelta(minutes=10), 5 * MINUTE),
        (timedelta(minutes=100), 50 * MINUTE),
        (timedelta(days=400), 60 * MINUTE),
        (None, 60 * MINUTE),
        (timedelta(days=-1), 30),
    ],
)
def test_the_pause_is_half_the_time_since_it_moved_between_the_two_settings(db, moved, seconds: float) -> None:
    [pause] = pauses(moved)
    assert 0.9 * seconds - 1 <= pause <= 1.1 * seconds + 1


@pytest.mark.parametrize(("watched", "seconds"), [(timedelta(0), 30), (timedelta(minutes=10), 5 * MINUTE)])
def test_one_that_has_not_moved_yet_is_new_while_it_is_new_here(db, watched: timedelta, seconds: float) -> None:
    [pause] = pauses(None, watched=watched)
    assert 0.9 * seconds - 1 <= pause <= 1.1 * seconds + 1


def test_checks_do_not_come_in_waves(db) -> None:
    drawn = pauses(None, many=30)
    assert len(set(drawn)) == 30
    assert max(drawn) - min(drawn) > 0.05 * 60 * MINUTE


def test_a_shortest_pause_above_the_longest_counts_as_the_longest(db, settings) -> None:
    settings.RESCAN_MIN_INTERVAL_SECONDS, settings.RESCAN_INTERVAL_SECONDS = 100, 10
    [pause] = pauses(timedelta(0))
    assert pause <= 12


def wait_of(watch: AppRepository) -> float:
    watch.refresh_from_db()
    assert watch.last_scanned_at is not None
    return (watch.next_check_at - watch.last_scanned_at).total_seconds()


def test_a_repository_that_moves_is_asked_again_soon_and_one_that_does_not_later_and_later(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    watch.refresh_from_db()
    assert watch.moved_at is None
    assert wait_of(watch) < MINUTE
    AppRepository.objects.update(created_at=Now() - timedelta(days=400))
    world.make_due(watch)
    world.settle()
    assert wait_of(watch) > 50 * MINUTE
    repo.commit({"new.txt": b"x"})
    world.make_due(watch)
    world.settle()
    watch.refresh_from_db()
    assert watch.moved_at is not None
    assert wait_of(watch) < 40
    moved = watch.moved_at
    AppRepository.objects.update(moved_at=F("moved_at") - timedelta(hours=1), next_check_at=Now())
    assert world.check() == 1
    assert 25 * MINUTE < wait_of(watch) < 35 * MINUTE
    assert watch.moved_at == moved - timedelta(hours=1)


def test_sending_everything_again_is_no_move(world: World) -> None:
    _, watch = world.watch()
    world.settle()
    world.make_due(watch)
    world.settle()
    watch.refresh_from_db()
    assert watch.moved_at is None
