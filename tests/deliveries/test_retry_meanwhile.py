"""Retry beside what is going on already, and taking it back."""

from collections import Counter

import pytest
from django.db import connection
from django.utils import timezone

from deliveries_app import tallies
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Outcome, Status, SyncRun
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import (
    cancel_operation,
    cancel_request,
    resync_single,
    retry_all,
    retry_by_app,
    retry_single,
)
from repositories_app.mirror import Mirror
from tests.support.histories import assert_promise_kept, at_notification, given_up, refusing
from tests.support.world import World

COMMAND = Actor.command()
FILES = {f"{n}.txt": b"%d" % n for n in range(8)}


@pytest.fixture
def world(world: World, settings) -> World:
    """Small batches and one file at a time, so that "halfway" is a certain place."""
    settings.RECORD_BATCH, world.app.max_in_flight, settings.MAX_RETRY_ATTEMPTS = 2, 1, 2
    world.app.save()
    return world


def retry(pair: AppRepository) -> SyncRun:
    return retry_single(COMMAND, pair).run


def sent_in(world: World, run: SyncRun) -> Counter[str]:
    """How often each path was sent by this run."""
    return Counter(record.path for record in world.requests() if record.run_id == run.run_id)


def outcomes(world: World, pair: AppRepository) -> list[tuple[str, str]]:
    """Reason and outcome of each run, the oldest first."""
    return [(run.reason, run.outcome) for run in reversed(world.runs(pair))]


def due_in(pair: AppRepository) -> float:
    assert pair.next_sync_at is not None
    return (pair.next_sync_at - timezone.now()).total_seconds()


# --- What is open already ------------------------------------------------------------------------------------------------


def test_an_open_run_is_taken_over_and_its_operation_ends(world: World) -> None:
    _, pair = world.watch(FILES)
    given_up(world, pair)
    first = retry_all(COMMAND)
    second = retry_by_app(COMMAND, world.app)
    first.refresh_from_db()
    assert first.ended_at
    assert tallies.of_operation(first).superseded == 1
    world.sync(pair)
    second.refresh_from_db()
    assert second.ended_at
    assert tallies.of_operation(second).succeeded == 1
    assert outcomes(world, pair) == [("initial", "failed"), ("retry", "superseded"), ("retry", "succeeded")]


def test_asked_for_while_git_is_read_this_very_attempt_is_for_it(world: World, monkeypatch) -> None:
    _, pair = world.watch(FILES)
    given_up(world, pair)
    first, made = retry(pair), list[SyncRun]()
    fetch = Mirror.fetch

    def and_press(mirror, *arguments, **named):
        made.append(retry(pair))
        return fetch(mirror, *arguments, **named)

    monkeypatch.setattr(Mirror, "fetch", and_press)
    pair = world.sync(pair)
    assert sent_in(world, first) == {}
    assert sent_in(world, made[0]) == {"3.txt": 1, "5.txt": 1}
    assert outcomes(world, pair)[-2:] == [("retry", "superseded"), ("retry", "succeeded")]


def test_asked_for_while_files_are_sent_the_worker_goes_on_and_nothing_is_sent_twice(world: World) -> None:
    repo, pair = world.watch(FILES)
    world.answer(refusing("0.txt"))
    world.sync(pair)
    repo.commit({f"new-{n}.txt": b"new" for n in range(4)})
    before = len(world.requests())
    world.answer(at_notification(2, lambda: retry(pair)))
    world.settle()
    assert Counter(record.path for record in world.requests()[before:]) == Counter(
        ["0.txt", *(f"new-{n}.txt" for n in range(4))]
    )
    assert_promise_kept(world, repo, pair)
    assert outcomes(world, pair)[-1] == ("retry", "succeeded")


def test_asked_for_during_the_last_attempt_it_is_still_tried(world: World) -> None:
    repo, pair = world.watch(FILES)
    world.answer(refusing("3.txt", "5.txt"))
    world.sync(pair)
    world.answer(at_notification(1, lambda: retry(pair), then=Answer(500)))
    pair = world.sync(pair)
    assert (pair.status, pair.retry_count) == (Status.PENDING, 0)
    assert outcomes(world, pair)[-1] == ("retry", "")
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, pair)
    assert outcomes(world, pair)[-1] == ("retry", "succeeded")


def test_asked_for_during_an_attempt_that_fails_for_good_it_is_still_tried(world: World) -> None:
    repo, pair = world.watch(FILES)
    given_up(world, pair)
    away = repo.path.with_name("away")
    repo.path.rename(away)
    pressed: list[SyncRun] = []

    def press_once(method: str, target: str) -> None:
        if not pressed:
            pressed.append(retry(pair))
            connection.close()

    world.git.server.on_request = press_once
    pair = world.sync(pair)
    assert (pair.status, pair.root_cause, pair.retry_count) == (Status.PENDING, "git_not_found", 0)
    assert outcomes(world, pair)[-1] == ("retry", "")
    away.rename(repo.path)
    world.sync(pair)
    assert_promise_kept(world, repo, pair)
    assert outcomes(world, pair)[-1] == ("retry", "succeeded")


def test_what_a_worker_still_sends_of_a_run_that_was_taken_over_moves_no_bar_back(world: World) -> None:
    """Its older operation goes on with another pair, and counts this one as done."""
    _, pair = world.watch(FILES)
    _, other = world.watch(FILES, name="acme/other")
    given_up(world, pair)
    given_up(world, other)
    operation = retry_all(COMMAND)
    completed: list[int] = []

    def look() -> None:
        operation.refresh_from_db()
        completed.append(tallies.of_operation(operation).completed)

    seen: list[str] = []

    def hook(note: Notification) -> None:
        seen.append(note.path)
        if len(seen) == 1:
            retry(pair)
        look()
        connection.close()

    world.answer(hook)
    world.sync(pair)
    look()
    assert completed == [1, 1, 1]


# --- Taking it back ------------------------------------------------------------------------------------------------------


def test_a_cancelled_retry_leaves_the_pair_failing_until_the_next_rescan(world: World, settings) -> None:
    repo, pair = world.watch(FILES)
    since = given_up(world, pair).failing_since
    operation = retry_all(COMMAND)
    assert cancel_operation(COMMAND, operation) == 1
    pair.refresh_from_db()
    assert (pair.status, pair.failing_since, pair.root_cause) == (Status.FAILED, since, "http_5xx")
    assert 0.8 * settings.RESCAN_INTERVAL_SECONDS < due_in(pair) <= settings.RESCAN_INTERVAL_SECONDS
    assert not AppRepository.objects.due().exists()
    assert outcomes(world, pair)[-1] == ("retry", "cancelled")
    world.sync(pair)  # the rescan
    assert_promise_kept(world, repo, pair)


def test_cancelling_fences_the_worker_that_is_at_it_and_what_it_sent_is_not_lost(world: World) -> None:
    repo, pair = world.watch(FILES)
    world.answer(lambda note: Answer(500))
    world.sync(pair)
    world.sync(pair)
    run = retry(pair)
    world.answer(at_notification(4, lambda: cancel_request(COMMAND, pair)))
    pair = world.sync(pair)
    assert (pair.status, pair.lease_until) == (Status.FAILED, None)
    assert len(sent_in(world, run)) <= 6
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED
    assert run.files_done < 4  # what it was sent when it was cancelled is in doubt, and nothing after it was recorded
    assert due_in(pair) > 0
    world.answer(None)
    world.sync(pair)
    assert_promise_kept(world, repo, pair)


def test_cancelling_a_retry_leaves_a_resync_alone_that_was_asked_for_after_it(world: World) -> None:
    repo, pair = world.watch(FILES)
    given_up(world, pair)
    operation = retry_all(COMMAND)
    run = resync_single(COMMAND, pair).run
    cancel_operation(COMMAND, operation)
    assert AppRepository.objects.due().get() == pair
    world.sync(pair)
    assert sent_in(world, run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, pair)
