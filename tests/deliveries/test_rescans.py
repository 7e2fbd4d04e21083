"""The check interval: half the time since the repository last changed, between two settings."""

from datetime import timedelta

import pytest
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.receiver import Answer, Notification
from deliveries_app.scheduling import next_check
from deliveries_app.services import push_hooks
from deliveries_app.sweep.head_checks import check_due
from repositories_app.git import remote
from tests.support.histories import assert_promise_kept, refusing
from tests.support.staff import make_app, make_watch
from tests.support.world import World

MINUTE = 60


@pytest.fixture(autouse=True)
def between_half_a_minute_and_an_hour(settings) -> None:
    settings.RESCAN_MIN_INTERVAL_SECONDS, settings.RESCAN_INTERVAL_SECONDS = 30, 60 * MINUTE


def intervals(changed: timedelta | None, *, watched: timedelta = timedelta(days=400), many: int = 1) -> list[float]:
    """Return the seconds until the next check of watches whose repository changed that long ago."""
    app = make_app("Portal")
    for number in range(many):
        make_watch(app, f"repository-{number}")
    AppRepository.objects.update(moved_at=None if changed is None else Now() - changed, created_at=Now() - watched)
    AppRepository.objects.update(next_check_at=next_check(), last_scanned_at=Now())
    return [
        watch.next_check_at.timestamp() - watch.last_scanned_at.timestamp() for watch in AppRepository.objects.all()
    ]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changed", "seconds"),
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
def test_interval_is_half_the_time_since_the_last_change(db, changed, seconds: float) -> None:
    [pause] = intervals(changed)
    assert 0.9 * seconds - 1 <= pause <= 1.1 * seconds + 1


@pytest.mark.parametrize(("watched", "seconds"), [(timedelta(0), 30), (timedelta(minutes=10), 5 * MINUTE)])
def test_interval_of_a_new_repository(db, watched: timedelta, seconds: float) -> None:
    [pause] = intervals(None, watched=watched)
    assert 0.9 * seconds - 1 <= pause <= 1.1 * seconds + 1


def test_checks_are_spread_out(db) -> None:
    drawn = intervals(None, many=30)
    assert len(set(drawn)) == 30
    assert max(drawn) - min(drawn) > 0.05 * 60 * MINUTE


def test_minimum_above_the_maximum_counts_as_the_maximum(db, settings) -> None:
    settings.RESCAN_MIN_INTERVAL_SECONDS, settings.RESCAN_INTERVAL_SECONDS = 100, 10
    [pause] = intervals(timedelta(0))
    assert pause <= 12


def interval_of(watch: AppRepository) -> float:
    watch.refresh_from_db()
    assert watch.last_scanned_at is not None
    return (watch.next_check_at - watch.last_scanned_at).total_seconds()


def test_active_repositories_are_checked_more_often(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    watch.refresh_from_db()
    assert watch.moved_at is None
    assert interval_of(watch) < MINUTE
    AppRepository.objects.update(created_at=Now() - timedelta(days=400))
    world.make_due(watch)
    world.settle()
    assert interval_of(watch) > 50 * MINUTE
    repo.commit({"new.txt": b"x"})
    world.make_due(watch)
    world.settle()
    watch.refresh_from_db()
    assert watch.moved_at is not None
    assert interval_of(watch) < 40
    changed = watch.moved_at
    AppRepository.objects.update(moved_at=F("moved_at") - timedelta(hours=1), next_check_at=Now())
    assert world.check() == 1
    assert 25 * MINUTE < interval_of(watch) < 35 * MINUTE
    assert watch.moved_at == changed - timedelta(hours=1)


def test_resync_does_not_count_as_a_change(world: World) -> None:
    _, watch = world.watch()
    world.settle()
    world.make_due(watch)
    world.settle()
    watch.refresh_from_db()
    assert watch.moved_at is None


def test_push_during_a_failing_attempt_keeps_the_backoff(world: World) -> None:
    """Pushes to another branch, each during an attempt, would use up all attempts within seconds."""
    repo, watch = world.watch({"a": b"a"})
    world.answer(refusing("a"))
    world.sync(watch)

    def push_and_refuse(note: Notification) -> Answer:
        push_hooks.repository_pushed(Actor.system(), watch.repository.repository_id, [watch.pk])
        return Answer(500)

    world.answer(push_and_refuse)
    world.sync(watch)
    assert (watch.retry_count, AppRepository.objects.due().exists()) == (2, False)
    repo.commit({"b": b"b"})
    with remote.new_client() as client:
        assert check_due(client) == 1  # the check that the push asked for
    assert AppRepository.objects.due().exists()
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
