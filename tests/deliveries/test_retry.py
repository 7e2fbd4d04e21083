"""Attempts that fail: tried again with a pause that doubles, then at the rescan (`engine.md` §6)."""

from datetime import timedelta

import pytest
from django.utils import timezone

from deliveries_app.models import AppRepository, Outcome, Status
from deliveries_app.sync import outcomes
from docora.backoff import backoff
from tests.support.histories import assert_promise_kept, refusing
from tests.support.world import World


def due_in(watch: AppRepository) -> float:
    assert watch.next_sync_at is not None
    return (watch.next_sync_at - timezone.now()).total_seconds()


def test_the_pause_doubles_up_to_an_hour_and_is_never_shortened_by_its_jitter() -> None:
    assert [backoff(attempt, base=1, jitter=0) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 8, 16]
    assert backoff(3, base=1, jitter=1) == 6
    assert backoff(60, base=1, jitter=0) == 3600
    assert backoff(3, base=10, jitter=0, longest=timedelta(seconds=25)) == 25


def test_watches_that_failed_together_do_not_come_back_together(world: World) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(3)]
    world.answer(refusing("readme.md"))
    pauses = {round(due_in(world.sync(watch)), 4) for watch in watches}
    assert len(pauses) == 3
    assert all(0.5 < pause <= 1.5 for pause in pauses)


def test_a_failing_file_is_tried_in_five_attempts_that_send_nothing_else_again(world: World, settings) -> None:
    _repo, watch = world.watch({"bad.txt": b"1", "good.txt": b"2", "fine.txt": b"3"})
    world.answer(refusing("bad.txt"))
    for attempt in range(1, settings.MAX_RETRY_ATTEMPTS):
        world.sync(watch)
        assert (watch.status, watch.retry_count) == (Status.PENDING, attempt)
        assert 2 ** (attempt - 1) - 1 < due_in(watch) <= 1.5 * 2 ** (attempt - 1)
        assert "1 file was not accepted" in watch.last_error
        assert world.runs(watch)[0].outcome == ""
    world.sync(watch)
    assert watch.status == Status.FAILED
    assert 0.8 * settings.RESCAN_INTERVAL_SECONDS < due_in(watch) <= settings.RESCAN_INTERVAL_SECONDS
    run = world.runs(watch)[0]
    assert (run.outcome, run.attempts, run.files_done, run.files_failed) == (Outcome.FAILED, 5, 2, 1)
    sent = [record.path for record in world.requests()]
    assert (sent.count("bad.txt"), sent.count("good.txt"), sent.count("fine.txt")) == (5, 1, 1)
    assert watch.failures.get(path="bad.txt").attempts == 5
    assert len({record.webhook_id for record in world.requests() if record.path == "bad.txt"}) == 1


def test_a_watch_that_failed_is_tried_again_at_the_rescan_by_itself(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch({"bad.txt": b"1", "good.txt": b"2"})
    world.answer(refusing("bad.txt"))
    for _ in range(4):  # two attempts, then one at each rescan
        world.sync(watch)
    assert watch.status == Status.FAILED
    assert due_in(watch) > 0.8 * settings.RESCAN_INTERVAL_SECONDS
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert watch.retry_count == 0
    assert (watch.last_error, watch.last_error_cause) == ("", "")
    assert [run.outcome for run in world.runs(watch)][-1] == Outcome.FAILED
    assert world.runs(watch)[0].outcome == Outcome.SUCCEEDED


def test_a_reverted_change_settles_the_failure_that_it_had_left(world: World) -> None:
    repo, watch = world.watch({"bad.txt": b"1"})
    world.sync(watch)
    repo.commit({"bad.txt": b"2"})
    world.answer(refusing("bad.txt"))
    world.check()
    world.sync(watch)
    assert watch.failures.count() == 1
    repo.commit({"bad.txt": None})
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_an_error_of_ours_counts_as_an_attempt_and_leaves_its_cause_in_the_log_alone(
    world: World, monkeypatch, caplog
) -> None:
    _, watch = world.watch()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("deliveries_app.planning.planner.fill", broken)
    world.sync(watch)
    assert (watch.status, watch.retry_count, watch.lease_until) == (Status.PENDING, 1, None)
    assert watch.last_error_cause == "internal"
    assert "secret detail" not in watch.last_error
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("wanted", [True, False])
def test_somebody_s_fresh_wish_is_not_delayed_by_the_backoff(world: World, wanted: bool, monkeypatch) -> None:
    _, watch = world.watch()
    world.answer(refusing("readme.md"))
    original = outcomes.failed

    def wished(*arguments: object, **facts: object) -> None:
        if wanted:
            AppRepository.objects.filter(pk=watch.pk).update(request_count=99, next_sync_at=timezone.now())
        original(*arguments, **facts)

    monkeypatch.setattr(outcomes, "failed", wished)
    world.sync(watch)
    assert (due_in(watch) <= 0) is wanted
