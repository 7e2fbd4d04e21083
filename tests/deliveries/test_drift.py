"""Checks for differences (`engine.md` §13): what is compared, when, what is recorded, and what "Fix N differences" sends."""

import json
import random
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    Delivery,
    DriftCheck,
    DriftFile,
    DriftKind,
    DriftState,
    StateDetail,
    Status,
    WatchState,
)
from deliveries_app.planning import delivery_rows
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import (
    NotCheckable,
    NothingToSend,
    cancel_check,
    check_app,
    check_watch,
    pause_syncing,
    resume_syncing,
    resync_single,
    send_differences,
    unwatch_repository,
)
from deliveries_app.services import drift as drift_service
from deliveries_app.services.push_hooks import repository_pushed
from deliveries_app.sweep import retention
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sync import drift
from deliveries_app.sync.channel import Channel
from deliveries_app.sync.claim import claim
from deliveries_app.sync.dead_processes import end_dead_leases
from deliveries_app.webhooks import verify
from docora.db.clock import from_now
from tests.deliveries.test_resend import add_deliveries
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, at_notification, kill_worker, refusing, sha
from tests.support.world import World

ACTOR = Actor.command()
FILES = {f"{n}.txt": b"%d" % n for n in range(6)} | {"docs/é.md": b"e", "docs/z": b"z", "docs-a": b"-"}


@pytest.fixture
def world(world: World) -> World:
    world.app.answers_verify = True
    world.app.save()
    return world


@pytest.fixture
def synced(world: World) -> tuple[Repo, AppRepository]:
    repo, watch = world.watch(FILES)
    world.settle()
    watch.refresh_from_db()
    return repo, watch


def folder(world: World, watch: AppRepository) -> Path:
    return world.receiver.directory / watch.app.app_id / watch.repository.repository_id


def damage(world: World, watch: AppRepository) -> None:
    """Lose two files of the copy, change one, and add two."""
    copy = folder(world, watch)
    (copy / "1.txt").unlink()
    (copy / "docs/é.md").unlink()
    (copy / "3.txt").write_bytes(b"changed")
    (copy / "extra").write_bytes(b"extra")
    (copy / "docs/new.md").write_bytes(b"extra")


def check(world: World, watch: AppRepository) -> DriftCheck:
    """Check the watch and return the result."""
    check = check_watch(ACTOR, watch)
    world.settle()
    check.refresh_from_db()
    return check


def found(check: DriftCheck) -> dict[str, str]:
    return dict(check.files.values_list("path", "kind"))


def counts(check: DriftCheck) -> tuple[int, int, int, int]:
    return check.compared, check.missing, check.different, check.extra


def answering(page: Mapping[str, object] | bytes | None, status: int = 200) -> Callable[[Notification], Answer | None]:
    """Return a hook that answers every `verify` with this body."""
    return lambda note: Answer(status, page or {}) if note.kind == "verify" else None  # type: ignore[arg-type]


# --- The result ----------------------------------------------------------------------------------------------------------


def test_equal_copy_takes_one_request(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    notes: list[Notification] = []
    world.answer(lambda note: notes.append(note))  # type: ignore[func-returns-value]
    result = check(world, watch)
    assert (result.state, counts(result), result.commit_sha) == (DriftState.EQUAL, (len(FILES), 0, 0, 0), repo.head)
    assert [note.kind for note in notes] == ["verify"]
    assert list(notes[0].payload) == [
        "event", "repository", "commit_sha", "tree_sha256", "after", "limit", "timestamp",
    ]  # fmt: skip
    assert notes[0].reason == "verify"
    assert not world.runs(watch)[1:]  # no run
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_differences_are_found_page_by_page(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(drift, "MAX_ENTRIES", limit)
    _, watch = synced
    damage(world, watch)
    result = check(world, watch)
    assert (result.state, counts(result)) == (DriftState.DIFFERS, (11, 2, 1, 2))
    assert found(result) == {
        "1.txt": "missing", "docs/é.md": "missing", "3.txt": "different", "docs/new.md": "extra", "extra": "extra",
    }  # fmt: skip
    assert len(world.requests("verify")) == -(-9 // limit)
    assert {record.status for record in world.requests("verify")} == {200}


def test_pages_keep_the_gap_of_the_apps_pace(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "MAX_ENTRIES", 3)
    App.objects.update(pace_slots=1, pace_gap=0.2, paced_at=Now())
    _, watch = synced
    damage(world, watch)
    assert check(world, watch).state == DriftState.DIFFERS
    times = [record.received_at for record in world.requests("verify")]
    assert [later - earlier >= 0.19 for earlier, later in pairwise(times)] == [True, True]


def test_fixing_differences_sends_nothing_else(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    damage(world, watch)
    result = check(world, watch)
    floor, before = watch.resend_floor, len(world.requests())
    sent = send_differences(ACTOR, result)
    world.settle()
    assert (sent.files, sent.deletes, sent.settled) == (3, 2, 0)
    requests = {record.path: record for record in world.requests()[before:]}
    assert {path: record.kind for path, record in requests.items()} == {
        "1.txt": "create", "docs/é.md": "create", "3.txt": "create", "docs/new.md": "delete", "extra": "delete",
    }  # fmt: skip
    assert requests["extra"].sha == sha(b"extra")
    assert_promise_kept(world, repo, watch)
    assert watch.resend_floor == floor
    assert check(world, watch).state == DriftState.EQUAL
    with pytest.raises(NothingToSend):
        send_differences(ACTOR, result)


def test_old_check_harms_nothing_that_was_sent_since(world: World, synced: tuple[Repo, AppRepository]) -> None:
    """The extra file is in the repository now, the missing one was changed, and the different one was deleted."""
    repo, watch = synced
    damage(world, watch)
    result = check(world, watch)
    repo.commit({"extra": b"of the repository", "1.txt": b"new", "3.txt": None, "docs/new.md": b"pushed"})
    world.settle()
    repo.commit({"docs/new.md": None})  # the app no longer holds it, and the repeated delete does no harm
    world.settle()
    before = len(world.requests())
    sent = send_differences(ACTOR, result)
    world.settle()
    assert (sent.files, sent.deletes, sent.settled) == (1, 1, 3)
    assert [(record.kind, record.path) for record in world.requests()[before:]] == [
        ("delete", "docs/new.md"), ("create", "docs/é.md"),
    ]  # fmt: skip
    assert_promise_kept(world, repo, watch)


def test_pushed_between_send_and_sync_becomes_a_create(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    (folder(world, watch) / "extra").write_bytes(b"extra")
    result = check(world, watch)
    send_differences(ACTOR, result)
    repo.commit({"extra": b"of the repository"})
    world.settle()
    assert [record.kind for record in world.requests() if record.path == "extra"] == ["create"]
    assert_promise_kept(world, repo, watch)


def test_files_beside_a_deleted_twin_are_sent_again(world: World) -> None:
    """A client that ignores case may delete readme.md together with the extra file README.md."""
    _, watch = world.watch({"readme.md": b"1", "a/b": b"2", "other": b"3"})
    world.settle()
    held = [{"path": path, "sha": sha(body)} for path, body in (("README.md", b"0"), ("a/b", b"2"), ("a/b/c", b"0"), ("other", b"3"), ("readme.md", b"1"))]  # fmt: skip
    world.answer(answering({"files": held, "next": None}))
    result = check(world, watch)
    assert found(result) == {"README.md": "extra", "a/b/c": "extra"}
    before = len(world.requests())
    sent = send_differences(ACTOR, result)
    world.settle()
    assert (sent.files, sent.deletes) == (0, 2)
    assert sorted((record.kind, record.path) for record in world.requests()[before:]) == [
        ("create", "a/b"), ("create", "readme.md"), ("delete", "README.md"), ("delete", "a/b/c"),
    ]  # fmt: skip


def test_sending_differences_leaves_another_app_alone(watches: list[AppRepository]) -> None:
    paths = ["lost", "readme.md"]
    rows = [add_deliveries(watch, paths) for watch in (watches[0], watches[2])]
    result = DriftCheck.objects.create(watch=watches[0], requested_by="a", state=DriftState.DIFFERS, ended_at=Now())
    for path, kind in (("lost", DriftKind.MISSING), ("README.md", DriftKind.EXTRA)):
        DriftFile.objects.create(check_of=result, path=path, kind=kind, sequence=0)
    sent = send_differences(ACTOR, result)
    assert (sent.files, sent.deletes) == (1, 1)
    acknowledged = [[Delivery.objects.get(pk=row.pk).acknowledged for row in of_watch] for of_watch in rows]
    assert acknowledged == [[False, False], [True, True]]


def test_more_differences_than_are_listed(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are counted, the first ones are listed, and these are sent."""
    monkeypatch.setattr(verify, "MAX_LISTED", 2)
    _, watch = synced
    damage(world, watch)
    result = check(world, watch)
    assert (result.differences, result.listed, list(found(result))) == (5, 2, ["1.txt", "3.txt"])
    sent = send_differences(ACTOR, result)
    world.settle()
    assert (sent.files, sent.deletes) == (2, 0)
    assert found(check(world, watch)) == {"docs/new.md": "extra", "docs/é.md": "missing"}


# --- Unusable answers ----------------------------------------------------------------------------------------------------

ENTRY = {"path": "1.txt", "sha": "a" * 64}
ANSWERS: dict[str, tuple[Answer, DriftState, str]] = {
    "404": (Answer(404), DriftState.UNSUPPORTED, "The app returned HTTP 404."),
    "405": (Answer(405), DriftState.UNSUPPORTED, "The app returned HTTP 405."),
    "410": (Answer(410), DriftState.UNSUPPORTED, "The app returned HTTP 410."),
    "501": (Answer(501), DriftState.UNSUPPORTED, "The app returned HTTP 501."),
    "302": (Answer(302), DriftState.UNSUPPORTED, "The app returned HTTP 302."),
    "other": (Answer(200, {"status": "ok"}), DriftState.UNSUPPORTED, "The answer has neither tree_sha256 nor files."),
    "too large": (Answer(200, {"x": "x" * 1_100_000}), DriftState.UNSUPPORTED, "The answer is larger than 1 MiB."),
    "500": (Answer(500), DriftState.NOT_CHECKED, "The app returned HTTP 500."),
    "hung up": (Answer(close=True), DriftState.NOT_CHECKED, "didn't send a complete response: Empty reply from server."),
    "busy": (Answer(429, {}, {"Retry-After": "0"}), DriftState.NOT_CHECKED, "The app returned HTTP 429."),
}  # fmt: skip


def test_unusable_answers_are_not_failures(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    for name, (answer, state, message) in ANSWERS.items():
        world.answer(lambda note, answer=answer: answer if note.kind == "verify" else None)  # type: ignore[misc]
        result = check(world, watch)
        assert (result.state, message in result.message) == (state, True), f"{name}: {result.state} {result.message}"
        assert_promise_kept(world, repo, watch)
    world.app.refresh_from_db()
    assert (world.app.paused, world.app.cooldown_until, world.app.down_count) == (False, None, 0)
    assert {run.outcome for run in world.runs(watch)} == {"succeeded"}


@pytest.mark.parametrize("status", [429, 503])
def test_client_that_takes_ten_requests_a_second_lists_all_pages(
    world: World, synced: tuple[Repo, AppRepository], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `Retry-After` is rounded down to 0 seconds."""
    _, watch = synced
    damage(world, watch)
    monkeypatch.setattr(drift, "MAX_ENTRIES", 3)
    accepted_at = 0.0

    def limited(note: Notification) -> Answer | None:
        nonlocal accepted_at
        if time.monotonic() - accepted_at < 0.1:
            return Answer(status, headers={"Retry-After": "0"})
        accepted_at = time.monotonic()
        return None

    world.answer(limited)
    result = check(world, watch)
    assert (result.state, result.message, counts(result)) == (DriftState.DIFFERS, "", (11, 2, 1, 2))


def test_app_that_answers_a_check_is_up_again(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    App.objects.update(down_count=3, cooldown_until=from_now(-1))
    assert check(world, watch).state == DriftState.EQUAL
    world.app.refresh_from_db()
    assert (world.app.down_count, world.app.cooldown_until) == (0, None)


READS: dict[str, tuple[object, str]] = {
    "not JSON": (b"ok", "isn't JSON"),
    "surrogate": (rb'{"files":[{"path":"\ud800","sha":"' + b"a" * 64 + b'"}]}', "isn't JSON"),
    "a list": ([], "isn't a JSON object"),
    "another hash": ({"tree_sha256": "b" * 64}, "another tree_sha256"),
    "hash after a page": ({"tree_sha256": "c" * 64}, "followed by an equal tree_sha256"),
    "files": ({"files": {}}, "isn't a list"),
    "too many": ({"files": [ENTRY, ENTRY | {"path": "2"}, ENTRY | {"path": "3"}]}, "limit was 2"),
    "entry": ({"files": ["1.txt"]}, "no path or no sha"),
    "no path": ({"files": [{"sha": "a" * 64}]}, "no path or no sha"),
    "number": ({"files": [ENTRY | {"sha": 1}]}, "no path or no sha"),
    "upper case": ({"files": [ENTRY | {"sha": "A" * 64}]}, "isn't a hexadecimal SHA-256"),
    "twice": ({"files": [ENTRY, ENTRY]}, "“1.txt” is listed twice"),
    "order": ({"files": [ENTRY | {"path": "b"}, ENTRY | {"path": "a"}]}, "“a” comes after “b”"),
    "UTF-16 order": ({"files": [ENTRY | {"path": "\U0001f600"}, ENTRY | {"path": "\uffff"}]}, "must be in byte order"),
    "before the cursor": ({"files": [ENTRY | {"path": "0"}]}, "“0” comes after “0.txt”"),
    "unsafe": ({"files": [ENTRY | {"path": "../x"}]}, "isn't a path that Docora sends"),
    "too long": ({"files": [ENTRY | {"path": "x" * 1025}]}, "isn't a path that Docora sends"),
    "stuck": ({"files": [], "next": "0.txt"}, "next is neither"),
    "next": ({"files": [ENTRY], "next": "z"}, "next is neither"),
}


@pytest.mark.parametrize("name", READS)
def test_malformed_page_says_what_is_wrong(name: str) -> None:
    answer, message = READS[name]
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(verify.Unusable, match=message):
        verify.read_page(body, tree_sha256="c" * 64, after="0.txt", limit=2)


def test_random_copies_are_compared_as_sets() -> None:
    chance = random.Random(18)
    for _ in range(200):
        names = [
            chance.choice("ab/é\U0001f600\uffff~") * chance.randint(1, 3) + str(n) for n in range(chance.randint(0, 12))
        ]
        held, copy = ({name: chance.choice("ab") * 64 for name in names if chance.random() < 0.7} for _ in range(2))
        rows = [verify.HeldFile(path, held[path], 1) for path in sorted(held, key=str.encode)]
        comparison = verify.Comparison(iter(rows))
        entries = [verify.Entry(path, copy[path]) for path in sorted(copy, key=str.encode)]
        limit = chance.randint(1, 4)
        for start in range(0, len(entries), limit):
            comparison.add(entries[start : start + limit])
        comparison.finish()
        kinds = {item.path: item.kind.value for item in comparison.listed}
        assert kinds == (
            dict.fromkeys(held.keys() - copy.keys(), "missing")
            | dict.fromkeys(copy.keys() - held.keys(), "extra")
            | {path: "different" for path in held.keys() & copy.keys() if held[path] != copy[path]}
        )
        assert (comparison.compared, comparison.differences) == (len(held.keys() | copy.keys()), len(kinds))


def test_page_that_is_too_large_is_requested_again_in_smaller_ones(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "MAX_ANSWER_BYTES", 700)
    monkeypatch.setattr(drift, "MAX_ENTRIES", 16)
    _, watch = synced
    damage(world, watch)
    notes: list[object] = []
    world.answer(lambda note: notes.append(note.payload["limit"]))  # type: ignore[func-returns-value]
    assert check(world, watch).differences == 5
    assert notes == [16, 2, 2, 2, 2, 2]


# --- When ----------------------------------------------------------------------------------------------------------------


def test_check_needs_the_apps_consent(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    requested = check_watch(ACTOR, watch)
    App.objects.update(answers_verify=False)
    watch.app.refresh_from_db()
    for call in (lambda: check_watch(ACTOR, watch), lambda: check_app(ACTOR, watch.app)):
        with pytest.raises(NotCheckable, match="turned off for Portal"):
            call()
    world.settle()
    requested.refresh_from_db()
    assert (requested.state, world.requests("verify")) == (DriftState.UNSUPPORTED, [])


def test_watch_has_one_open_check(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    assert check_watch(ACTOR, watch) == check_watch(ACTOR, watch)
    assert check_app(ACTOR, world.app) == [check_watch(ACTOR, watch).pk]
    world.settle()
    assert DriftCheck.objects.get().state == DriftState.EQUAL


def test_check_of_a_watch_without_a_commit_is_refused(world: World) -> None:
    _, watch = world.watch()
    with pytest.raises(NotCheckable, match="has not been synced yet"):
        check_watch(ACTOR, watch)
    with pytest.raises(NotCheckable, match="no repository that has been synced"):
        check_app(ACTOR, world.app)


def test_files_go_first(world: World, synced: tuple[Repo, AppRepository]) -> None:
    """The check comes after everything is acknowledged, with the commit that was synced."""
    repo, watch = synced
    repo.commit({"new": b"new"})
    result = check(world, watch)
    assert [record.kind for record in world.requests()][-2:] == ["create", "verify"]
    assert (result.state, result.commit_sha, result.compared) == (DriftState.EQUAL, repo.head, len(FILES) + 1)


def test_failing_watch_is_checked_once_all_is_delivered(world: World, synced: tuple[Repo, AppRepository]) -> None:
    repo, watch = synced
    repo.commit({"new": b"new"})
    world.answer(refusing("new"))
    world.check()
    watch = world.sync(watch)
    due = watch.next_sync_at
    requested = check_watch(ACTOR, watch)
    watch.refresh_from_db()
    assert watch.next_sync_at == due  # the retries keep their backoff
    drift_service.maintain_checks()
    world.sync(watch)
    requested.refresh_from_db()
    assert (requested.state, world.requests("verify")) == (DriftState.QUEUED, [])
    world.answer(None)
    world.settle()
    requested.refresh_from_db()
    assert requested.state == DriftState.EQUAL


def test_check_makes_way_for_a_push(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(drift, "MAX_ENTRIES", 2)
    repo, watch = synced
    damage(world, watch)

    def push() -> None:
        repo.commit({"new": b"new"})
        repository_pushed(ACTOR, watch.repository.repository_id, [watch.pk])

    requested = check_watch(ACTOR, watch)
    world.answer(at_notification(2, push))
    world.sync(watch)
    requested.refresh_from_db()
    watch.refresh_from_db()
    assert (requested.state, requested.attempts, len(world.requests("verify"))) == (DriftState.QUEUED, 0, 2)
    assert watch.next_sync_at is not None
    world.settle()
    requested.refresh_from_db()
    kinds = [record.kind for record in world.requests()][len(FILES) :]
    assert kinds == ["verify"] * 2 + ["create"] + ["verify"] * 5
    assert (requested.state, requested.differences) == (DriftState.DIFFERS, 5)


@pytest.mark.parametrize("slots", [1, 2])
def test_check_makes_way_for_a_push_to_another_repository_that_gets_no_slot(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr(drift, "_ASK_SECONDS", 0.0)
    monkeypatch.setattr(drift, "MAX_ENTRIES", 2)
    _, watch = synced
    damage(world, watch)
    App.objects.update(max_in_flight=slots)

    def push() -> None:
        _, pushed = world.watch(name="acme/pushed")
        AppRepository.objects.filter(pk=pushed.pk).update(next_sync_at=from_now(-2))

    requested = check_watch(ACTOR, watch)
    world.answer(at_notification(2, push))
    world.sync(watch)
    requested.refresh_from_db()
    assert requested.state == (DriftState.QUEUED if slots == 1 else DriftState.DIFFERS)
    world.answer(None)
    drift_service.maintain_checks()  # the sweep makes the watch due again
    world.settle()
    requested.refresh_from_db()
    assert requested.differences == 5


def test_checks_do_not_make_way_for_each_other(world: World, synced: tuple[Repo, AppRepository], monkeypatch) -> None:
    monkeypatch.setattr(drift, "_ASK_SECONDS", 0.0)
    _, watch = synced
    _, other = world.watch(name="acme/other")
    world.settle()
    App.objects.update(max_in_flight=1)
    check_app(ACTOR, world.app)
    AppRepository.objects.filter(pk=other.pk).update(next_sync_at=from_now(-2))
    world.sync(watch)
    assert DriftCheck.objects.get(watch=watch).state == DriftState.EQUAL


def test_lease_is_kept_while_missing_files_are_counted(
    synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_rows, "PAGE", 2)
    ticks: list[None] = []
    comparison = verify.Comparison(delivery_rows.acknowledged_files(synced[1].pk, lambda: ticks.append(None)))
    comparison.finish()
    assert (comparison.missing, len(ticks)) == (len(FILES), 5)


@pytest.mark.parametrize("what", ["cancel", "resync", "unwatch", "send"])
def test_actions_during_a_check(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A superseded check records nothing. It starts over, unless it was cancelled."""
    monkeypatch.setattr(drift, "MAX_ENTRIES", 2)
    _, watch = synced
    damage(world, watch)
    earlier = check(world, watch)
    requested = check_watch(ACTOR, watch)
    actions: dict[str, Callable[[], object]] = {
        "cancel": lambda: cancel_check(ACTOR, requested),
        "resync": lambda: resync_single(ACTOR, watch),
        "unwatch": lambda: unwatch_repository(ACTOR, watch),
        "send": lambda: send_differences(ACTOR, earlier),
    }
    world.answer(at_notification(2, actions[what]))
    world.sync(watch)
    requested.refresh_from_db()
    assert requested.state == (DriftState.CANCELLED if what == "cancel" else DriftState.QUEUED)
    assert not requested.files.exists()
    drift_service.maintain_checks()
    world.settle()
    requested.refresh_from_db()
    ends = {"resync": DriftState.DIFFERS, "send": DriftState.EQUAL}  # a re-sync leaves the extra files
    assert requested.state == ends.get(what, DriftState.CANCELLED)
    if what == "unwatch":
        remove_ended()
        assert not DriftCheck.objects.exists()
        assert not DriftFile.objects.exists()


def test_killed_worker_leaves_a_check_that_starts_again(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    damage(world, watch)
    requested = check_watch(ACTOR, watch)
    kill_worker(world, watch, lambda note: note.kind == "verify")
    requested.refresh_from_db()
    assert (requested.state, requested.attempts) == (DriftState.CHECKING, 1)
    drift_service.maintain_checks()
    requested.refresh_from_db()
    assert requested.state == DriftState.QUEUED
    for _ in range(2):
        kill_worker(world, watch, lambda note: note.kind == "verify")
    end_dead_leases()
    world.settle()
    requested.refresh_from_db()
    watch.refresh_from_db()
    assert (requested.state, requested.message) == (
        DriftState.NOT_CHECKED, "The worker died 3 times during the check. Check its memory and its log.",
    )  # fmt: skip
    assert (watch.status, watch.is_failing, watch.retry_count) == (Status.SYNCED, False, 0)


def test_check_that_another_claim_runs_is_not_given_back(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    check = check_watch(ACTOR, watch)

    def begun() -> drift._Check:
        AppRepository.objects.update(lease_until=None)
        lease = claim(watch.pk)
        assert lease is not None
        run = drift._Check(Channel(None, lease, lambda: None), check, watch.last_commit, None)  # type: ignore[arg-type]
        run._begin()
        return run

    frozen, other = begun(), begun()
    frozen.give_back()
    check.refresh_from_db()
    assert (check.state, check.fencing_token) == (DriftState.CHECKING, other._lease.fencing_token)


def test_queued_check_leaves_a_failing_watch_to_its_retries(watches: list[AppRepository]) -> None:
    failing, idle, _ = watches
    later = timezone.now() + timedelta(hours=1)
    AppRepository.objects.update(last_commit="c" * 40)
    AppRepository.objects.filter(pk=failing.pk).update(
        next_sync_at=later, failing_since=Now(), root_cause="timeout", status=Status.PENDING
    )
    for watch in (failing, idle):
        DriftCheck.objects.create(watch=watch, requested_by="anna")
    drift_service.maintain_checks()
    failing.refresh_from_db()
    assert failing.next_sync_at == later
    assert AppRepository.objects.due().get() == idle


def test_waiting_check_gives_up_and_says_what_it_waited_for(world: World, synced: tuple[Repo, AppRepository]) -> None:
    _, watch = synced
    App.objects.update(paused=True)
    requested = check_watch(ACTOR, watch)
    drift_service.maintain_checks()
    requested.refresh_from_db()
    assert requested.state == DriftState.QUEUED
    assert drift_service.waits_for(AppRepository.objects.with_state().get()) == "The app is paused."
    DriftCheck.objects.update(created_at=timezone.now() - timedelta(seconds=drift_service.WAIT_SECONDS + 1))
    drift_service.maintain_checks()
    requested.refresh_from_db()
    assert (requested.state, requested.message) == (
        DriftState.NOT_CHECKED, "The check was still queued after 1 h. The app is paused.",
    )  # fmt: skip


def test_every_state_that_holds_a_check_back_has_a_text() -> None:
    passing = {WatchState.UP_TO_DATE, WatchState.QUEUED}
    holding = {detail for detail in StateDetail if detail.state not in passing}
    assert holding <= drift_service._WAITS.keys()


def test_pause_of_syncing_queues_a_running_check(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "MAX_ENTRIES", 2)
    monkeypatch.setattr("deliveries_app.sync.slots._REBALANCE_SECONDS", (0.0, 0.0))
    _, watch = synced
    damage(world, watch)
    requested = check_watch(ACTOR, watch)
    world.answer(at_notification(2, lambda: pause_syncing(ACTOR)))
    world.sync(watch)
    requested.refresh_from_db()
    assert (requested.state, requested.attempts) == (DriftState.QUEUED, 0)
    resume_syncing(ACTOR)
    world.settle()
    requested.refresh_from_db()
    assert requested.state == DriftState.DIFFERS
    begun = check_watch(ACTOR, watch)
    before = len(world.requests())
    world.answer(at_notification(2, lambda: pause_syncing(ACTOR)))
    world.sync(watch)
    assert len(world.requests()) > before
    DriftCheck.objects.update(created_at=timezone.now() - timedelta(seconds=drift_service.WAIT_SECONDS + 1))
    drift_service.maintain_checks()
    begun.refresh_from_db()
    assert begun.message == "The check was still queued after 1 h. All syncing is paused.", "it has begun before"


def test_bug_in_the_check_is_not_a_failed_sync(
    world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, watch = synced
    monkeypatch.setattr(drift, "read_page", lambda *_, **__: 1 / 0)
    result = check(world, watch)
    assert (result.state, "internal error" in result.message) == (DriftState.NOT_CHECKED, True)
    assert_promise_kept(world, repo, watch)


def test_endless_list_ends(world: World, synced: tuple[Repo, AppRepository], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MAX_SECONDS", 0.0)
    _, watch = synced

    def one_more(note: Notification) -> Answer | None:
        if note.kind != "verify":
            return None
        path = f"{note.payload['after']}x"
        return Answer(200, {"files": [{"path": path, "sha": "a" * 64}], "next": path})

    world.answer(one_more)
    result = check(world, watch)
    assert (result.state, "had not listed all its files" in result.message) == (DriftState.NOT_CHECKED, True)


def test_old_checks_are_pruned_with_their_files(world: World, synced: tuple[Repo, AppRepository], settings) -> None:
    _, watch = synced
    damage(world, watch)
    check(world, watch)
    open_check = check_watch(ACTOR, watch)
    old = timezone.now() - timedelta(days=settings.SYNC_RUN_RETENTION_DAYS + 1)
    DriftCheck.objects.update(created_at=old)
    assert retention.prune(dry_run=True)["checks"] == 1
    assert retention.prune()["checks"] == 1
    assert list(DriftCheck.objects.all()) == [open_check]
    assert not DriftFile.objects.exists()
