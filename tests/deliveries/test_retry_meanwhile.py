"""Retry beside what is going on already, and taking it back."""

from collections import Counter

import pytest
from django.db import connection
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Outcome, Status, SyncRun
from deliveries_app.progress import live
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import (
    cancel_operation,
    cancel_request,
    resync_single,
    retry_all,
    retry_by_app,
    retry_single,
)
from repositories_app.mirror.mirror import Mirror
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


def retry(watch: AppRepository) -> SyncRun:
    return retry_single(COMMAND, watch).run


def sent_in(world: World, run: SyncRun) -> Counter[str]:
    """How often each path was sent by this run."""
    return Counter(record.path for record in world.requests() if record.run_id == run.run_id)


def outcomes(world: World, watch: AppRepository) -> list[tuple[str, str]]:
    """Reason and outcome of each run, the oldest first."""
    return [(run.reason, run.outcome) for run in reversed(world.runs(watch))]


def due_in(watch: AppRepository) -> float:
    assert watch.next_sync_at is not None
    return (watch.next_sync_at - timezone.now()).total_seconds()


# --- What is open already ------------------------------------------------------------------------------------------------


def test_an_open_run_is_taken_over_and_its_operation_ends(world: World) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    first = retry_all(COMMAND)
    second = retry_by_app(COMMAND, world.app)
    first.refresh_from_db()
    assert first.ended_at
    assert live.of_operation(first).superseded == 1
    world.sync(watch)
    second.refresh_from_db()
    assert second.ended_at
    assert live.of_operation(second).succeeded == 1
    assert outcomes(world, watch) == [("initial", "failed"), ("retry", "superseded"), ("retry", "succeeded")]


def test_asked_for_while_git_is_read_this_very_attempt_is_for_it(world: World, monkeypatch) -> None:
    _, watch = world.watch(FILES)
    given_up(world, watch)
    first, made = retry(watch), list[SyncRun]()
    fetch = Mirror.fetch

    def and_press(mirror, *arguments, **named):
        made.append(retry(watch))
        return fetch(mirror, *arguments, **named)

    monkeypatch.setattr(Mirror, "fetch", and_press)
    watch = world.sync(watch)
    assert sent_in(world, first) == {}
    assert sent_in(world, made[0]) == {"3.txt": 1, "5.txt": 1}
    assert outcomes(world, watch)[-2:] == [("retry", "superseded"), ("retry", "succeeded")]


def test_asked_for_while_files_are_sent_the_worker_goes_on_and_nothing_is_sent_twice(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("0.txt"))
    world.sync(watch)
    repo.commit({f"new-{n}.txt": b"new" for n in range(4)})
    before = len(world.requests())
    world.answer(at_notification(2, lambda: retry(watch)))
    world.settle()
    assert Counter(record.path for record in world.requests()[before:]) == Counter(
        ["0.txt", *(f"new-{n}.txt" for n in range(4))]
    )
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch)[-1] == ("retry", "succeeded")


def test_asked_for_during_the_last_attempt_it_is_still_tried(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(refusing("3.txt", "5.txt"))
    world.sync(watch)
    world.answer(at_notification(1, lambda: retry(watch), then=Answer(500)))
    watch = world.sync(watch)
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert outcomes(world, watch)[-1] == ("retry", "")
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch)[-1] == ("retry", "succeeded")


def test_asked_for_during_an_attempt_that_fails_for_good_it_is_still_tried(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    away = repo.path.with_name("away")
    repo.path.rename(away)
    pressed: list[SyncRun] = []

    def press_once(method: str, target: str) -> None:
        if not pressed:
            pressed.append(retry(watch))
            connection.close()

    world.git.server.on_request = press_once
    watch = world.sync(watch)
    assert (watch.status, watch.root_cause, watch.retry_count) == (Status.PENDING, "git_not_found", 0)
    assert outcomes(world, watch)[-1] == ("retry", "")
    away.rename(repo.path)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert outcomes(world, watch)[-1] == ("retry", "succeeded")


def test_what_a_worker_still_sends_of_a_run_that_was_taken_over_moves_no_bar_back(world: World) -> None:
    """Its older operation goes on with another watch, and counts this one as done."""
    _, watch = world.watch(FILES)
    _, other = world.watch(FILES, name="acme/other")
    given_up(world, watch)
    given_up(world, other)
    operation = retry_all(COMMAND)
    completed: list[int] = []

    def look() -> None:
        operation.refresh_from_db()
        completed.append(live.of_operation(operation).completed)

    seen: list[str] = []

    def hook(note: Notification) -> None:
        seen.append(note.path)
        if len(seen) == 1:
            retry(watch)
        look()
        connection.close()

    world.answer(hook)
    world.sync(watch)
    look()
    assert completed == [1, 1, 1]


# --- Taking it back ------------------------------------------------------------------------------------------------------


def test_a_cancelled_retry_leaves_the_watch_failing_until_the_next_rescan(world: World, settings) -> None:
    repo, watch = world.watch(FILES)
    since = given_up(world, watch).failing_since
    operation = retry_all(COMMAND)
    assert cancel_operation(COMMAND, operation) == 1
    watch.refresh_from_db()
    assert (watch.status, watch.failing_since, watch.root_cause) == (Status.FAILED, since, "http_5xx")
    assert 0.8 * settings.RESCAN_INTERVAL_SECONDS < due_in(watch) <= settings.RESCAN_INTERVAL_SECONDS
    assert not AppRepository.objects.due().exists()
    assert outcomes(world, watch)[-1] == ("retry", "cancelled")
    world.sync(watch)  # the rescan
    assert_promise_kept(world, repo, watch)


def test_cancelling_fences_the_worker_that_is_at_it_and_what_it_sent_is_not_lost(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.answer(lambda note: Answer(500))
    world.sync(watch)
    world.sync(watch)
    run = retry(watch)
    world.answer(at_notification(4, lambda: cancel_request(COMMAND, watch)))
    watch = world.sync(watch)
    assert (watch.status, watch.lease_until) == (Status.FAILED, None)
    assert len(sent_in(world, run)) <= 6
    run.refresh_from_db()
    assert run.outcome == Outcome.CANCELLED
    assert run.files_done < 4  # what it was sent when it was cancelled is in doubt, and nothing after it was recorded
    assert due_in(watch) > 0
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_cancelling_a_retry_leaves_a_resync_alone_that_was_asked_for_after_it(world: World) -> None:
    repo, watch = world.watch(FILES)
    given_up(world, watch)
    operation = retry_all(COMMAND)
    run = resync_single(COMMAND, watch).run
    cancel_operation(COMMAND, operation)
    assert AppRepository.objects.due().get() == watch
    world.sync(watch)
    assert sent_in(world, run) == dict.fromkeys(FILES, 1)
    assert_promise_kept(world, repo, watch)
