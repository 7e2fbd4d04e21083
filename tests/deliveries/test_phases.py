"""The order within a run (engine.md §7): deletes, creates, updates. No failing file blocks unrelated files."""

import random
import time
import unicodedata
from collections import Counter
from datetime import timedelta

import pytest
from django.db.models import Sum
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Delivery, HourlyTraffic, Status
from deliveries_app.receiver import Answer, Notification, Record
from deliveries_app.services import resync_single
from tests.support.histories import assert_promise_kept, in_doubt, refusing, sha
from tests.support.world import World

A, B = b"content A", b"content B"


def requests_since(world: World, before: int) -> list[Record]:
    return world.requests()[before:]


def test_deletes_then_creates_then_updates(world: World, settings) -> None:
    settings.RECORD_BATCH = 4
    repo, watch = world.watch({f"{kind}-{n}": A for kind in ("gone", "old") for n in range(10)})
    world.sync(watch)
    before = len(world.requests())
    repo.commit({f"gone-{n}": None for n in range(10)})
    repo.commit({f"new-{n}": A for n in range(10)} | {f"old-{n}": B for n in range(10)})
    busy = [Answer(429, headers={"Retry-After": "0"})]
    world.answer(lambda note: busy.pop() if busy and note.path == "gone-9" else None)  # one slow delete
    world.sync(watch)
    records = requests_since(world, before)
    assert Counter(record.kind for record in records) == {"delete": 11, "create": 10, "update": 10}
    spans = {
        kind: (
            min(record.received_at for record in records if record.kind == kind),
            max(record.answered_at for record in records if record.kind == kind),
        )
        for kind in ("delete", "create", "update")
    }
    assert spans["delete"][1] <= spans["create"][0]
    assert spans["create"][1] <= spans["update"][0]
    assert_promise_kept(world, repo, watch)


REPLACEMENTS = {
    "a file becomes a directory": ({"a": A}, {"a/b": A}),
    "a directory becomes a file": ({"a/b": A}, {"a": A}),
    "a deep directory becomes a file": ({"a/b/c/d": A, "a/b/e": A}, {"a": B}),
    "a file becomes a deep directory": ({"a/b": A}, {"a/b/c/d": A, "a/b/e": B}),
}


@pytest.mark.parametrize(("old", "new"), REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_file_and_directory_that_swap_are_deleted_first(
    world: World, old: dict[str, bytes], new: dict[str, bytes]
) -> None:
    repo, watch = world.watch(old | {"z": A})
    world.sync(watch)
    repo.commit(dict.fromkeys(old) | new)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize(("old", "new"), REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_only_paths_behind_an_unsettled_delete_wait(world: World, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    repo, watch = world.watch(old | {"z": A})
    world.sync(watch)
    before = len(world.requests())
    repo.commit(dict.fromkeys(old))
    repo.commit(new | {"a-": A, "ab": A, "b/a": A, "z": B})
    world.answer(lambda note: Answer(500) if note.kind == "delete" else None)
    watch = world.sync(watch)
    paths = {record.path for record in requests_since(world, before) if record.kind != "delete"}
    assert paths == {"a-", "ab", "b/a", "z"}
    assert watch.status == Status.PENDING
    assert watch.files_failing == len(old) + len(new)
    listed = dict(watch.failures.values_list("path", "cause"))
    assert listed == dict.fromkeys(old, "http") | dict.fromkeys(new, "blocked")
    assert set(watch.failures.values_list("cause", "attempts")) == {("http", 1), ("blocked", 0)}
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_thousands_of_files_wait_behind_one_unsettled_delete(world: World) -> None:
    """Their contents exceed git's pipe, and are never read."""
    chance = random.Random(20261128)
    repo, watch = world.watch({"a": A})
    world.sync(watch)
    repo.commit({"a": None} | {f"a/{number:04}": chance.randbytes(1000) for number in range(2000)})
    world.answer(lambda note: Answer(500) if note.kind == "delete" else None)
    watch = world.sync(watch)
    assert (watch.status, watch.files_failing) == (Status.PENDING, 2001)
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


NFD, NFC = "u\u0308ber.md", "\u00fcber.md"
ONE_FILE = {
    "case": ({"README.md": A}, {"readme.md": A}),
    "Unicode form": ({NFD: A}, {NFC: A}),
    "case of a directory": ({"Docs/a": A, "Docs/b": A}, {"docs/a": A, "docs/b": B}),
    "a file becomes a directory": ({"Docs": A}, {"docs/Über": A}),
    "a directory becomes a file": ({"DOCS/a/b": A}, {"docs": A}),
    "both": ({f"{NFD.upper()}/x": A}, {f"{NFC}/X": A}),
}


class FoldingClient:
    """A client app on a file system that ignores case and Unicode forms. It loses the answers to the first `lost` deletes."""

    def __init__(self, lost: int) -> None:
        self.files: dict[str, tuple[str, str]] = {}
        self.lost = lost

    def answer(self, note: Notification) -> Answer:
        key = unicodedata.normalize("NFD", note.path).lower()
        if note.kind != "delete":
            above = {key[:end] for end, character in enumerate(key) if character == "/"}
            self.files = {
                other: file
                for other, file in self.files.items()
                if other not in above and f"{key}/" != other[: len(key) + 1]
            }
            self.files[key] = (note.path, note.sha)
            return Answer()
        self.files.pop(key, None)
        self.lost -= 1
        return Answer(close=True) if self.lost >= 0 else Answer()


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), ONE_FILE.values(), ids=ONE_FILE)
def test_client_that_folds_paths_keeps_what_replaces_a_file(
    world: World, old: dict[str, bytes], new: dict[str, bytes], lost: int
) -> None:
    """Without its answer the delete is sent again. A create that was sent in between would be undone."""
    client = FoldingClient(lost)
    world.answer(client.answer)
    repo, watch = world.watch(old | {"z": A})
    world.sync(watch)
    repo.commit(dict.fromkeys(old) | new | {"z": B})
    world.settle()
    watch.refresh_from_db()
    assert watch.status == Status.SYNCED
    assert dict(client.files.values()) == {path: sha(content) for path, content in (new | {"z": B}).items()}


def test_paths_that_may_be_one_file_are_not_in_flight_together(world: World) -> None:
    open_now: Counter[str] = Counter()
    highest: Counter[str] = Counter()

    def slow(note: Notification) -> None:
        key = note.path.lower()
        open_now[key] += 1
        highest[key] = max(highest[key], open_now[key])
        time.sleep(0.05)
        open_now[key] -= 1

    world.answer(slow)
    names = ["README.md", "Readme.md", "readme.MD", "other", "another"]
    repo, watch = world.watch(dict.fromkeys(names, A))
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert highest == {"readme.md": 1, "other": 1, "another": 1}
    assert max(record.in_flight for record in world.receiver.log) > 1


def test_delete_held_after_a_timeout_blocks_its_path(world: World) -> None:
    repo, watch = world.watch({"a": A, "z": A})
    world.sync(watch)
    repo.commit({"a": None})
    repo.commit({"a/b": B, "new": B})
    world.answer(refusing("a"))
    world.sync(watch)
    Delivery.objects.filter(watch=watch, path="a").update(hold_until=timezone.now() + timedelta(seconds=20))
    world.answer(None)
    before = len(world.requests())
    watch = world.sync(watch)
    assert requests_since(world, before) == []
    assert watch.next_sync_at
    assert watch.next_sync_at > timezone.now() + timedelta(seconds=15)  # due when the hold is over
    assert set(watch.failures.values_list("path", flat=True)) == {"a", "a/b"}
    Delivery.objects.filter(watch=watch, path="a").update(hold_until=timezone.now() + timedelta(seconds=0.2))
    world.settle()
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("status", [404, 410])
def test_404_to_a_delete_counts_only_in_doubt(world: World, status: int) -> None:
    """An app that certainly had the file has lost it. An app that may have deleted it already is right."""
    repo, watch = world.watch({"a": A, "b": A})
    world.sync(watch)
    repo.commit({"a": None})
    world.answer(refusing("a", status=status))
    watch = world.sync(watch)
    assert (watch.status, in_doubt(watch)) == (Status.PENDING, {"a"})
    watch = world.sync(watch)
    assert (watch.status, in_doubt(watch)) == (Status.SYNCED, set())
    assert [record.status for record in world.requests("delete")] == [status] * 3  # the last one after a ping
    assert len(world.requests("ping")) == 1
    assert not watch.app.paused
    assert set(world.rows(watch)) == {"b"}


@pytest.mark.parametrize("resynced", [False, True])
@pytest.mark.parametrize("status", [404, 410])
def test_404_of_another_server_does_not_count_as_a_delete(world: World, status: int, resynced: bool) -> None:
    """The base URL is wrong, or a proxy answers 404 to everything. Once that is fixed, the app gets the deletes."""
    repo, watch = world.watch({"a": A, "b": A, "c": A})
    world.sync(watch)
    repo.commit({"a": None, "b": None})
    if resynced:
        resync_single(Actor.command(), watch)
    world.answer(lambda note: Answer(status))
    for _ in range(3):
        world.sync(watch)
    App.objects.update(paused=False)  # 410s to pings do not pause it; those to the creates of the re-sync do
    assert set(world.rows(watch)) == {"a", "b", "c"}
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_404_to_a_delete_of_an_app_that_limits_its_rate(world: World) -> None:
    repo, watch = world.watch({"a": A, "b": A})
    world.sync(watch)
    repo.commit({"a": None})
    last = 0.0

    def answer(note: Notification) -> Answer | None:
        nonlocal last
        since, last = time.monotonic() - last, time.monotonic()
        return Answer(429) if since < 0.08 else Answer(404) if note.kind == "delete" else None

    world.answer(answer)
    world.sync(watch)
    watch = world.sync(watch)
    assert (watch.status, in_doubt(watch)) == (Status.SYNCED, set())


def test_404_to_a_delete_counts_without_ping_once_the_app_has_accepted_something(world: World) -> None:
    repo, watch = world.watch({"a": A, "b": A})
    world.sync(watch)
    repo.commit({"a": None})
    world.answer(lambda note: Answer(404) if note.kind in {"delete", "ping"} else None)
    for _ in range(3):
        watch = world.sync(watch)
        assert in_doubt(watch) == {"a"}
    repo.commit({"b": B})
    watch = world.sync(watch)
    watch = world.sync(watch)
    assert (watch.status, in_doubt(watch)) == (Status.SYNCED, set())


@pytest.mark.parametrize("attempts", [1, 2])
def test_404_to_a_delete_needs_proof_from_after_the_delete_first_failed(world: World, attempts: int) -> None:
    """What the app accepted between a failed create and the delete of its path proves nothing."""
    repo, watch = world.watch({"b": A})
    world.settle()
    world.answer(lambda note: Answer(504, process=True) if note.path == "new" else None)
    repo.commit({"new": A, "b": B})
    world.sync(watch)
    repo.commit({"new": None})
    world.answer(lambda note: Answer(404))  # the app's proxy, while the app is being replaced
    for _ in range(attempts):
        Delivery.objects.update(hold_until=None)
        AppRepository.objects.update(doubt_until=None)
        watch = world.sync(watch)
        assert in_doubt(watch) == {"new"}
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_file_answered_500_does_not_block_later_files(world: World, settings) -> None:
    settings.RECORD_BATCH = 10
    repo, watch = world.watch({f"{n:02}": A for n in range(40)})
    world.answer(refusing("00"))
    watch = world.sync(watch)
    assert (watch.status, watch.files_failing) == (Status.PENDING, 1)
    assert "1 file couldn't be delivered" in watch.last_error
    assert set(world.copy(watch)) == {f"{n:02}" for n in range(1, 40)}
    failure = watch.failures.get()
    assert (failure.path, failure.status_code, failure.attempts) == ("00", 500, 1)
    before = len(world.requests())
    watch = world.sync(watch)
    assert [record.path for record in requests_since(world, before)] == ["00"]  # all others are acknowledged
    assert watch.failures.get().attempts == 2
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_complete_run_lists_exactly_the_failed_files(world: World) -> None:
    repo, watch = world.watch({"a": A, "b": A, "c": A, "gone": A})
    world.answer(refusing("a", "b", "gone"))
    watch = world.sync(watch)
    assert set(watch.failures.values_list("path", flat=True)) == {"a", "b", "gone"}
    repo.commit({"gone": None})
    world.answer(refusing("b"))
    watch = world.sync(watch)
    assert set(watch.failures.values_list("path", flat=True)) == {"b"}
    assert watch.files_failing == 1


def test_run_leaves_the_records_of_another_app_alone(world: World) -> None:
    """Both watch the same repository, and both have the same two paths to deliver."""
    repo, watch = world.watch({"a": A, "b": A})
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    repo.commit({"a": None, "b": B})
    world.answer(lambda note: Answer(500))
    world.sync(other)
    rows, failures = other.deliveries.order_by("path").values(), other.failures.order_by("path").values()
    before = list(rows), list(failures)
    assert list(map(len, before)) == [2, 2]
    world.sync(watch)
    world.answer(None)
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    assert (list(rows.all()), list(failures.all())) == before


def test_blocked_files_are_not_failed_attempts_at_the_endpoint(world: World) -> None:
    """The app's charts and its share of accepted notifications only count what was sent to it."""
    repo, watch = world.watch({"a": A})
    world.sync(watch)
    repo.commit({"a": None} | {f"a/{number}": A for number in range(5)})
    world.answer(refusing("a"))
    world.sync(watch)
    assert watch.files_failing == 6
    traffic = HourlyTraffic.objects.aggregate(Sum("files"), Sum("failed"), Sum("requests"))
    assert traffic == {"files__sum": 1, "failed__sum": 1, "requests__sum": 2}


def test_vanished_blocked_path_is_no_longer_listed(world: World) -> None:
    repo, watch = world.watch({"a": A, "z": A})
    world.sync(watch)
    repo.commit({"a": None})
    repo.commit({"a/b": B, "a/c": B})
    world.answer(refusing("a"))
    watch = world.sync(watch)
    assert set(watch.failures.values_list("path", flat=True)) == {"a", "a/b", "a/c"}
    repo.commit({"a/b": None})
    watch = world.sync(watch)
    assert set(watch.failures.values_list("path", flat=True)) == {"a", "a/c"}
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)
