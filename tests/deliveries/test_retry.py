"""Failed attempts are retried with exponential backoff, then at every rescan (`engine.md` §6)."""

import time
from itertools import count

import pytest
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Outcome, Status
from deliveries_app.services import resync_single
from deliveries_app.sync import outcomes
from deliveries_app.sync.content import Contents
from docora.backoff import backoff
from repositories_app.git.exceptions import Cause, GitError
from tests.support.histories import assert_promise_kept, refusing, seconds_until_next_sync
from tests.support.world import World


def test_backoff_doubles_up_to_an_hour() -> None:
    assert [backoff(attempt, base=1, jitter=0) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 8, 16]
    assert backoff(3, base=1, jitter=1) == 6
    assert [backoff(attempt, base=1, jitter=0) for attempt in (60, 100_000)] == [3600, 3600]
    assert [backoff(attempt, base=1, jitter=1) for attempt in (60, 100_000)] == [2400, 2400]


def test_watches_that_fail_together_retry_at_different_times(world: World) -> None:
    watches = [world.watch(name=f"acme/widgets-{number}")[1] for number in range(3)]
    world.answer(refusing("readme.md"))
    pauses = {round(seconds_until_next_sync(world.sync(watch)), 4) for watch in watches}
    assert len(pauses) == 3
    assert all(0.5 < pause <= 1.5 for pause in pauses)


def test_failing_file_is_retried_without_resending_others(world: World, settings) -> None:
    _repo, watch = world.watch({"bad.txt": b"1", "good.txt": b"2", "fine.txt": b"3"})
    world.answer(refusing("bad.txt"))
    for attempt in range(1, settings.MAX_RETRY_ATTEMPTS):
        world.sync(watch)
        assert (watch.status, watch.retry_count) == (Status.PENDING, attempt)
        assert 2 ** (attempt - 1) - 1 < seconds_until_next_sync(watch) <= 1.5 * 2 ** (attempt - 1)
        assert "1 file couldn't be delivered" in watch.last_error
        assert world.runs(watch)[0].outcome == ""
    world.sync(watch)
    assert watch.status == Status.FAILED
    assert 0.8 * settings.RESCAN_INTERVAL_SECONDS < seconds_until_next_sync(watch) <= settings.RESCAN_INTERVAL_SECONDS
    run = world.runs(watch)[0]
    assert (run.outcome, run.attempts, run.files_done, run.files_failed) == (Outcome.FAILED, 5, 2, 1)
    sent = [record.path for record in world.requests()]
    assert (sent.count("bad.txt"), sent.count("good.txt"), sent.count("fine.txt")) == (5, 1, 1)
    assert watch.failures.get(path="bad.txt").attempts == 5
    assert len({record.webhook_id for record in world.requests() if record.path == "bad.txt"}) == 1


def test_failed_watch_is_retried_at_the_rescan(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch({"bad.txt": b"1", "good.txt": b"2"})
    world.answer(refusing("bad.txt"))
    for _ in range(4):  # two attempts, then one at each rescan
        world.sync(watch)
    assert watch.status == Status.FAILED
    assert seconds_until_next_sync(watch) > 0.8 * settings.RESCAN_INTERVAL_SECONDS
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert watch.retry_count == 0
    assert (watch.last_error, watch.last_error_cause) == ("", "")
    assert [run.outcome for run in world.runs(watch)][-1] == Outcome.FAILED
    assert world.runs(watch)[0].outcome == Outcome.SUCCEEDED


@pytest.mark.parametrize(("attempts", "status"), [(3, Status.PENDING), (5, Status.FAILED)])
def test_limit_that_is_lowered_while_a_watch_fails(world: World, settings, attempts: int, status: Status) -> None:
    settings.MAX_RETRY_ATTEMPTS = 5
    repo, watch = world.watch()
    world.answer(refusing("readme.md"))
    for _ in range(attempts):
        world.sync(watch)
    assert watch.status == status
    settings.MAX_RETRY_ATTEMPTS = 2
    world.sync(watch)  # the last attempt before the next rescan
    assert (watch.status, watch.retry_count) == (Status.FAILED, 1)
    assert "1 file couldn't be delivered" in watch.last_error
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), OSError(28, "No space left on device"), GitError(Cause.OTHER, "git failed.")],
    ids=lambda error: type(error).__name__,
)
def test_responses_in_flight_at_an_error_are_recorded(world: World, settings, monkeypatch, error: Exception) -> None:
    settings.RECORD_BATCH = 6
    _, watch = world.watch({f"{n}": b"%d" % n for n in range(7)})
    world.answer(lambda note: time.sleep(0.02 if note.path in "01" else 0.3))
    read, blocks = Contents.read, count()

    def fail_at_the_second_block(*arguments):
        if next(blocks):  # 0 and 1 have been answered, and at least 2 and 3 are under way
            raise error
        return read(*arguments)

    monkeypatch.setattr(Contents, "read", fail_at_the_second_block)
    assert world.sync(watch).is_failing
    assert set("0123") <= set(watch.deliveries.filter(acknowledged=True).values_list("path", flat=True))


def test_deleting_a_failing_file_clears_its_failure(world: World) -> None:
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


def test_internal_error_counts_as_an_attempt(world: World, monkeypatch, caplog) -> None:
    _, watch = world.watch()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("deliveries_app.planning.planner.fill", broken)
    world.sync(watch)
    assert (watch.status, watch.retry_count, watch.lease_until) == (Status.PENDING, 1, None)
    assert watch.last_error_cause == "internal"
    assert "secret detail" not in watch.last_error
    assert "secret detail" in caplog.text


def test_url_that_is_no_longer_accepted_fails_the_attempt(world: World) -> None:
    _, watch = world.watch()
    AppRepository.objects.filter(pk=watch.pk).update(github_url=f"{watch.github_url.rpartition('/')[0]}/a..git.git")
    world.sync(watch)
    assert (watch.is_failing, watch.lease_until) == (True, None)


@pytest.mark.parametrize(
    ("error", "event"),
    [(ValueError("a bug"), "sync_failed_unexpectedly"), (OSError(28, "No space left on device"), "machine_failed")],
)
def test_error_is_logged_although_the_run_is_superseded_meanwhile(
    world: World, settings, monkeypatch, caplog, error: Exception, event: str
) -> None:
    settings.RECORD_BATCH = 1
    _, watch = world.watch({"a": b"1", "b": b"2"})
    read, blocks = Contents.read, count()

    def fail_at_the_second_block(*arguments):
        if next(blocks):
            resync_single(Actor.command(), watch)
            raise error
        return read(*arguments)

    monkeypatch.setattr(Contents, "read", fail_at_the_second_block)
    world.sync(watch)
    assert {event, "superseded"} <= set(caplog.messages)


@pytest.mark.parametrize("requested", [True, False])
def test_new_request_skips_backoff(world: World, requested: bool, monkeypatch) -> None:
    _, watch = world.watch()
    world.answer(refusing("readme.md"))
    original = outcomes.failed

    def failed_after_request(*arguments: object, **fields: object) -> None:
        if requested:
            AppRepository.objects.filter(pk=watch.pk).update(request_count=99, next_sync_at=timezone.now())
        original(*arguments, **fields)

    monkeypatch.setattr(outcomes, "failed", failed_after_request)
    world.sync(watch)
    assert (seconds_until_next_sync(watch) <= 0) is requested


def test_file_that_always_fails_takes_no_attempts_of_later_files(world: World, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch({"poison.txt": b"1"})
    world.answer(refusing("poison.txt"))
    world.sync(watch)
    assert world.sync(watch).status == Status.FAILED
    repo.commit({"new.txt": b"2"})
    world.answer(refusing("poison.txt", "new.txt"))
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 1)
    world.answer(refusing("poison.txt"))
    assert world.sync(watch).status == Status.FAILED  # nothing is left that was not tried
    assert set(world.copy(watch)) == {"new.txt"}
    assert world.sync(watch).status == Status.FAILED
