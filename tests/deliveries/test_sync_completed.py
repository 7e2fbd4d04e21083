"""`sync_completed`: a hash that shows whether the app holds exactly the repository."""

import hashlib
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Notice, NoticeKind, Status
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import change_watch, resync_single
from deliveries_app.sync import events
from deliveries_app.sync.claim import claim
from deliveries_app.sync.events import HeldTree, held_tree
from tests.support.git import git
from tests.support.histories import assert_promise_kept, at_notification, refusing, sha
from tests.support.transforms import use_transforms
from tests.support.world import World

FILES = {"b": b"b", "a/c": b"c", "a.b": b"", "é": b"accent", "\U0001f600": b"smile", "\uffff": b"last"}


@pytest.fixture
def notices(world: World) -> list[Notification]:
    """The notices received by an app that has turned them on."""
    world.app.send_sync_completed = True
    world.app.save()
    found: list[Notification] = []
    world.answer(lambda note: found.append(note) if note.kind == "sync_completed" else None)  # type: ignore[func-returns-value]
    return found


def refusing_notices(world: World) -> None:
    world.answer(lambda note: Answer(503) if note.kind == "sync_completed" else None)


def test_sync_completed_is_off_by_default(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert {record.kind for record in world.requests()} == {"create"}


def test_sync_completed_comes_last_with_the_manifest_hash(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    assert [record.kind for record in world.requests()] == ["create"] * len(FILES) + ["sync_completed"]
    assert world.requests()[-1].outcome == "matches"  # computed by the client over its own files
    said = notices[0].payload
    lines = "".join(f"{sha(FILES[path])}  {path}\n" for path in sorted(FILES, key=str.encode))
    assert said["tree_sha256"] == hashlib.sha256(lines.encode()).hexdigest() == held_tree(watch.pk, lambda: None).sha256
    assert (said["commit_sha"], said["files"], said["event"]) == (repo.head, len(FILES), "sync_completed")
    assert not Notice.objects.exists()
    assert_promise_kept(world, repo, watch)


def test_sync_completed_covers_the_whole_tree_after_a_change(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    repo.commit({"b": None, "a/c": b"changed", "new": b"new"})
    world.settle()
    world.sync(watch)
    assert [record.outcome for record in world.requests("sync_completed")] == ["matches", "matches"]
    assert notices[1].payload["files"] == len(FILES)
    assert notices[0].sequence < notices[1].sequence
    assert_promise_kept(world, repo, watch)


def test_empty_tree_has_the_hash_of_nothing(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch({"only": b"x"})
    world.settle()
    repo.commit({"only": None})
    world.settle()
    assert notices[-1].payload["tree_sha256"] == hashlib.sha256(b"").hexdigest()
    assert notices[-1].payload["files"] == 0
    assert_promise_kept(world, repo, watch)


def test_sync_completed_waits_for_missing_files(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    hook = world.receiver.on_request
    world.answer(refusing("b"))
    world.sync(watch)
    assert world.requests("sync_completed") == []
    world.answer(hook)
    world.settle()
    assert [record.outcome for record in world.requests("sync_completed")] == ["matches"]
    assert_promise_kept(world, repo, watch)


def test_resync_during_a_run_gets_its_own_sync_completed(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    world.answer(
        at_notification(len(FILES) + 1, lambda: resync_single(Actor.command(), watch))
    )  # during the notice itself
    world.settle()
    assert len(world.requests("create")) == 2 * len(FILES)
    assert [record.outcome for record in world.requests("sync_completed")] == ["matches", "matches"]
    assert_promise_kept(world, repo, watch)


def test_run_that_lost_its_lease_leaves_the_notice_of_the_next_one(
    world: World, notices: list[Notification], monkeypatch
) -> None:
    _, watch = world.watch(FILES)
    waiting = events.new_notice(watch, NoticeKind.SYNC_COMPLETED, {})

    def late(*arguments: Any) -> HeldTree:
        AppRepository.objects.update(lease_until=Now() - timedelta(seconds=1))
        assert claim(watch.pk)
        waiting.save()
        return held_tree(*arguments)

    monkeypatch.setattr(events, "held_tree", late)
    world.sync(watch)
    assert Notice.objects.get() == waiting
    assert notices == []


def test_refused_sync_completed_is_retried_without_files(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    refusing_notices(world)
    watch = world.sync(watch)
    assert watch.status == Status.PENDING
    assert "/sync_completed failed" in watch.last_error
    watch = world.sync(watch)
    world.answer(None)
    world.settle()
    assert len(world.requests("create")) == len(FILES)
    sent = world.requests("sync_completed")
    assert [record.status for record in sent] == [503, 503, 200]
    assert len({(record.webhook_id, record.sequence) for record in sent}) == 1  # the same notice, retried
    assert not watch.notices.exists()
    assert_promise_kept(world, repo, watch)


def test_refused_sync_completed_of_an_earlier_request_is_not_repeated(
    world: World, notices: list[Notification]
) -> None:
    _, watch = world.watch(FILES)
    refusing_notices(world)
    world.sync(watch)
    world.answer(None)
    resync_single(Actor.command(), watch)
    world.sync(watch)
    sent = world.requests("sync_completed")
    assert [record.status for record in sent] == [503, 200]
    assert len({record.sequence for record in sent}) == 2


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [(429, {"Retry-After": "120"}, 120), (503, {"Retry-After": "120"}, 120), (429, {}, 10)],
    ids=["429 with Retry-After", "503 with Retry-After", "429"],
)
def test_busy_app_gets_sync_completed_later(
    world: World, notices: list[Notification], status: int, headers: dict[str, str], seconds: int
) -> None:
    """As with files, the app is left alone for as long as it asks, and no attempt counts."""
    repo, watch = world.watch(FILES)
    world.answer(lambda note: Answer(status, headers=headers) if note.kind == "sync_completed" else None)
    watch = world.sync(watch)
    world.app.refresh_from_db()
    assert world.app.cooldown_until is not None
    assert abs((world.app.cooldown_until - timezone.now()).total_seconds() - seconds) < 8
    assert (watch.status, watch.retry_count) == (Status.PENDING, 0)
    assert "/sync_completed failed" in watch.last_error
    world.answer(None)
    world.settle()
    first, again = world.requests("sync_completed")
    assert (first.webhook_id, first.sequence) == (again.webhook_id, again.sequence)
    assert len(world.requests("create")) == len(FILES)
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("status", [429, 503])
def test_busy_app_that_asks_for_no_wait_gets_sync_completed_at_growing_intervals(
    world: World, notices: list[Notification], status: int
) -> None:
    """It asked for 0 seconds, so its repository was synced again at once, without end, and no attempt counted."""
    _, watch = world.watch(FILES)
    refusal = Answer(status, headers={"Retry-After": "0"})
    world.answer(lambda note: refusal if note.kind == "sync_completed" else None)
    waits = []
    for _ in range(9):
        began = timezone.now()
        watch = world.sync(watch)
        world.app.refresh_from_db()
        assert watch.next_sync_at is not None
        assert world.app.cooldown_until is not None
        waits.append((min(watch.next_sync_at, world.app.cooldown_until) - began).total_seconds())
    assert 0.1 < waits[0] < 5
    assert waits[3] > 0.8
    assert all(10 < wait < 15 for wait in waits[7:])
    assert watch.retry_count == 0
    assert len({record.sequence for record in world.requests("sync_completed")}) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_no_file_is_failing_after_a_refused_sync_completed(
    world: World, notices: list[Notification], status: int
) -> None:
    _, watch = world.watch(FILES)
    world.answer(refusing("b"))
    assert world.sync(watch).files_failing == 1
    world.answer(lambda note: Answer(status) if note.kind == "sync_completed" else None)
    watch = world.sync(watch)
    assert "/sync_completed failed" in watch.last_error
    assert (watch.files_failing, watch.files_delivered) == (0, len(FILES))


def test_notice_of_another_app_stays(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other", send_sync_completed=True))
    world.answer(lambda note: Answer(500) if note.kind == "sync_completed" else None)
    world.sync(other)
    world.sync(watch)
    assert Notice.objects.count() == 2
    world.answer(None)
    world.sync(watch)
    assert [notice.watch for notice in Notice.objects.all()] == [other]


def test_changed_tree_replaces_a_refused_sync_completed(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    refusing_notices(world)
    world.sync(watch)
    world.answer(None)
    repo.commit({"b": b"changed"})
    world.settle()
    sent = world.requests("sync_completed")
    assert [record.status for record in sent] == [503, 200]
    assert sent[0].webhook_id != sent[1].webhook_id
    assert sent[0].sequence < sent[1].sequence
    assert not watch.notices.exists()
    assert_promise_kept(world, repo, watch)


def test_commit_that_is_head_again_gets_a_new_sync_completed(world: World, notices: list[Notification]) -> None:
    """Under the number of the earlier one, which may have been processed, the app would ignore it."""
    repo, watch = world.watch(FILES)
    first = repo.head
    refusing_notices(world)
    world.sync(watch)
    repo.commit({"b": b"changed"})
    world.sync(watch)
    git(repo.path, "update-ref", "HEAD", first)
    world.answer(None)
    world.sync(watch)
    sent = world.requests("sync_completed")
    assert [record.status for record in sent] == [503, 503, 200]
    assert sent[0].sequence < sent[1].sequence < sent[2].sequence


@pytest.mark.parametrize("is_resync", [False, True])
def test_refused_sync_completed_is_sent_at_the_rescan(
    world: World, notices: list[Notification], settings, is_resync: bool
) -> None:
    """By then there are no files to send, but the app has not received the notice yet."""
    settings.MAX_RETRY_ATTEMPTS = 2
    repo, watch = world.watch(FILES)
    if is_resync:
        world.settle()
        resync_single(Actor.command(), watch)
    refusing_notices(world)
    world.sync(watch)
    assert world.sync(watch).status == Status.FAILED
    world.answer(None)
    world.sync(watch)
    assert [record.status for record in world.requests("sync_completed")][is_resync:] == [503, 503, 200]
    assert_promise_kept(world, repo, watch)


def test_commit_that_changes_no_file_is_reported(world: World, notices: list[Notification]) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    commit = repo.commit({}, "Nothing but a message")
    world.settle()
    assert [notice.payload["commit_sha"] for notice in notices][-1] == commit
    assert [record.kind for record in world.requests()].count("sync_completed") == 2
    assert_promise_kept(world, repo, watch)
    world.check()
    assert len(notices) == 2


@pytest.mark.parametrize("is_refused_first", [False, True])
def test_sync_completed_is_still_due_when_the_failing_file_is_left_out(
    world: World, notices: list[Notification], settings, is_refused_first: bool
) -> None:
    """The attempt that leaves it out has nothing to send, and is at the commit of the last run, which failed."""
    settings.MAX_RETRY_ATTEMPTS = 1
    use_transforms(settings, "Picky")
    _, watch = world.watch({"good": b"good", "bad": b"poison"})
    assert world.sync(watch).status == Status.FAILED
    change_watch(Actor.command(), watch, ignore_patterns="bad")
    if is_refused_first:
        hook = world.receiver.on_request
        refusing_notices(world)
        assert world.sync(watch).status == Status.FAILED
        world.answer(hook)
    assert not notices
    assert world.sync(watch).status == Status.SYNCED
    assert [notice.payload["files"] for notice in notices] == [1]
    world.sync(watch)
    assert len(notices) == 1
