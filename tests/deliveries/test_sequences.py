"""Deliveries are recorded before the first byte is sent (`engine.md` §1), and sequences increase (§5), also if workers are killed."""

import itertools
import random
import time
from collections import Counter

import pytest
from django.db import connections

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, Status
from deliveries_app.planning import delivery_rows
from deliveries_app.receiver import Answer, Notification
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.sweep.cleanup import remove_ended
from docora.db.compiled import compiled
from tests.docora.http_server import servers
from tests.support.histories import (
    assert_promise_kept,
    at_notification,
    in_doubt,
    kill_worker,
    kill_worker_before_first_byte,
    refusing,
    sha,
)
from tests.support.world import World

A, B, C = b"content A", b"content B", b"content C"


def is_about(path: str, content: bytes | None = None):
    return lambda note: note.path == path and (content is None or note.sha == sha(content))


def test_notification_is_recorded_as_in_doubt_before_it_is_sent(world: World) -> None:
    repo, watch = world.watch({"kept": A, "changed": A, "deleted": A})
    seen: list[tuple[str, bool]] = []

    def check_row(note: Notification) -> None:
        try:
            row = Delivery.objects.get(watch=watch, path=note.path)
            announced = (row.kind, row.sequence, row.sha, row.acknowledged) == (
                note.kind,
                note.sequence,
                note.sha,
                False,
            )
            seen.append((note.kind, announced))
        finally:
            connections.close_all()

    world.answer(check_row)
    world.sync(watch)
    repo.commit({"changed": B, "deleted": None, "new": C})
    world.sync(watch)
    assert Counter(seen) == {("create", True): 4, ("update", True): 1, ("delete", True): 1}
    assert_promise_kept(world, repo, watch)


def test_worker_killed_before_the_first_byte(
    world: World,
) -> None:
    repo, watch = world.watch({"a": A, "b": B})
    kill_worker_before_first_byte(world, watch)
    announced = {path: row.sequence for path, row in world.rows(watch).items()}
    assert in_doubt(watch) == {"a", "b"}
    assert world.requests() == []
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert {record.path: record.sequence for record in world.requests()} == announced


def test_worker_killed_after_a_create_and_file_deleted_upstream(
    world: World,
) -> None:
    """Without the row of the announced create, the file would never be deleted at the client."""
    repo, watch = world.watch({"stays": A, "ghost": B})
    kill_worker(world, watch, is_about("ghost"))
    assert world.copy(watch)["ghost"] == sha(B)
    assert "ghost" in in_doubt(watch)
    repo.commit({"ghost": None})
    world.settle()
    assert [(record.kind, record.sha) for record in world.requests("delete")] == [("delete", sha(B))]
    assert_promise_kept(world, repo, watch)


def test_worker_killed_after_an_update_and_change_reverted_upstream(
    world: World,
) -> None:
    """A → B sent, killed, pushed back to A: "unchanged" would skip it while the client holds B."""
    repo, watch = world.watch({"file": A})
    world.sync(watch)
    repo.commit({"file": B})
    kill_worker(world, watch, is_about("file", B))
    assert world.copy(watch) == {"file": sha(B)}
    repo.commit({"file": A})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert world.copy(watch) == {"file": sha(A)}


@pytest.mark.parametrize("processed", [True, False], ids=["it had arrived", "it was lost"])
def test_delete_in_doubt_and_file_restored_upstream(world: World, processed: bool) -> None:
    repo, watch = world.watch({"file": A, "other": A})
    world.sync(watch)
    repo.commit({"file": None})
    kill_worker(world, watch, is_about("file"), processed=processed)
    repo.commit({"file": A})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert world.requests()[-1].kind == "create"


@pytest.mark.parametrize("kind", ["create", "update", "delete"])
def test_crash_keeps_id_and_sequence(world: World, kind: str) -> None:
    repo, watch = world.watch({"other": A} if kind == "create" else {"other": A, "file": A})
    world.sync(watch)
    repo.commit({"file": None if kind == "delete" else B})
    kill_worker(world, watch, is_about("file"), processed=False)
    kill_worker(world, watch, is_about("file"), processed=True)
    world.settle()
    sent = [
        record
        for record in world.requests(kind)
        if record.path == "file" and (kind == "delete" or record.sha == sha(B))
    ]
    assert len(sent) == 3
    assert len({(record.webhook_id, record.sequence, record.sha) for record in sent}) == 1
    assert_promise_kept(world, repo, watch)


def test_failed_notification_keeps_its_id_until_accepted(world: World) -> None:
    repo, watch = world.watch({"file": A, "fine": A})
    world.answer(refusing("file"))
    for _ in range(3):
        world.sync(watch)
    world.answer(None)
    world.settle()
    sent = [record for record in world.requests() if record.path == "file"]
    assert [record.status for record in sent] == [500, 500, 500, 200]
    assert len({(record.webhook_id, record.sequence) for record in sent}) == 1
    assert_promise_kept(world, repo, watch)


def test_alternating_content_draws_new_sequences_across_crashes(world: World) -> None:
    """With ids derived from the content, a client that de-duplicates would drop the second A and the second B."""
    repo, watch = world.watch({"file": A})
    world.sync(watch)
    for content, crash in [(B, True), (A, False), (B, True), (A, True), (B, False)]:
        repo.commit({"file": content})
        if crash:
            kill_worker(world, watch, is_about("file", content))
        else:
            world.settle()
            assert_promise_kept(world, repo, watch)
    by_id: dict[str, set[tuple[str, str, int]]] = {}
    for record in world.requests():
        by_id.setdefault(record.webhook_id, set()).add((record.kind, record.sha, record.sequence))
    assert all(len(contents) == 1 for contents in by_id.values()), "an id was used for two notifications"
    numbers = [number for number, _ in itertools.groupby(record.sequence for record in world.requests())]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 6


def test_crash_leaves_few_files_in_doubt(world: World, settings) -> None:
    settings.RECORD_BATCH, world.app.max_in_flight = 10, 4
    world.app.save()
    repo, watch = world.watch({f"{n:03}.txt": b"%d" % n for n in range(80)})
    for nth in (37, 20):
        seen = itertools.count(1)
        kill_worker(world, watch, lambda note, seen=seen, nth=nth: next(seen) == nth)
        assert 0 < len(in_doubt(watch)) <= settings.RECORD_BATCH + world.app.max_in_flight
    world.settle()
    assert_promise_kept(world, repo, watch)
    again = sum(count - 1 for count in Counter(record.path for record in world.requests()).values())
    assert again <= 2 * (settings.RECORD_BATCH + world.app.max_in_flight)


@pytest.mark.parametrize("number", [3, 11, 18], ids="killed at notification {}".format)
def test_worker_killed_among_deletes_creates_and_updates(world: World, settings, number: int) -> None:
    settings.RECORD_BATCH = 3
    repo, watch = world.watch({f"{n}.txt": A for n in range(16)})
    world.sync(watch)
    changes = {f"{n}.txt": None for n in range(8)} | {f"new-{n}": B for n in range(6)}
    repo.commit(changes | {f"{n}.txt": C for n in range(8, 14)})
    seen = itertools.count(1)
    kill_worker(world, watch, lambda note: next(seen) == number, processed=bool(number % 2))
    world.settle()
    assert_promise_kept(world, repo, watch)


ANSWERS = {
    "302": Answer(302, headers={"Location": "/create"}),
    "400": Answer(400),
    "404": Answer(404),
    "410": Answer(410),
    "500": Answer(500),
    "silence": Answer(close=True),
}


def test_only_a_2xx_acknowledges(world: World) -> None:
    repo, watch = world.watch({f"{kind}-{name}": A for kind in ("update", "delete") for name in ANSWERS})
    world.sync(watch)
    repo.commit({f"create-{name}": B for name in ANSWERS} | {f"update-{name}": B for name in ANSWERS})
    repo.commit({f"delete-{name}": None for name in ANSWERS})
    world.answer(lambda note: ANSWERS[note.path.partition("-")[2]])
    watch = world.sync(watch)
    assert (watch.status, watch.files_failing) == (Status.PENDING, 18)
    for path, row in world.rows(watch).items():
        kind = path.partition("-")[0]
        assert (row.kind, row.acknowledged, row.acknowledged_sha) == (kind, False, None if kind == "create" else sha(A))
    assert len(world.rows(watch)) == 18
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_201_and_204_acknowledge(world: World) -> None:
    repo, watch = world.watch({"a": A, "b": A})
    world.answer(lambda note: Answer(201 if note.path == "a" else 204, process=True))
    world.sync(watch)
    repo.commit({"a": None})
    watch = world.sync(watch)
    assert set(world.rows(watch)) == {"b"}
    assert_promise_kept(world, repo, watch)


# --- Paths and foreign text ----------------------------------------------------------------------------------------------


def test_rows_are_read_in_byte_order(world: World, monkeypatch) -> None:
    monkeypatch.setattr(delivery_rows, "PAGE", 3)
    monkeypatch.setattr(delivery_rows, "_page_after", compiled(delivery_rows._page_after.__wrapped__))
    names = [
        "B",
        "a",
        "A",
        "b/b",
        "a.b",
        "a-",
        "é",
        "e\u0301",
        "\uffff",
        "\U00010000",
        "~",
        "ß",
        "ss",
        "Z",
        "ä/z",
        "1",
        "10",
    ]
    repo, watch = world.watch(dict.fromkeys(names, A))
    world.sync(watch)
    found = [row.path for row in delivery_rows.all_rows(watch.pk)]
    assert found == sorted(names, key=str.encode)
    assert [row.path for row in delivery_rows.rows_at(watch.pk, found)] == found
    assert_promise_kept(world, repo, watch)


def test_longest_path_is_delivered(world: World) -> None:
    chance = random.Random(1)
    long = "/".join("".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=127)) for _ in range(8)) + "x"
    assert len(long) == 1024
    repo, watch = world.watch({long: A})
    world.settle()
    assert_promise_kept(world, repo, watch)
    repo.commit({long + "y": A, "short": A})
    watch = world.sync(watch)
    assert set(world.copy(watch)) == {long, "short"}
    assert [failure.cause for failure in watch.failures.all()] == ["path_too_long"]


def test_error_body_is_stored_as_clean_bounded_text(world: World) -> None:
    body = b"\x00bad \xed\xa0\x80 \xff\x1b[31m" + b"x" * 10_000
    head = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(body)
    _, watch = world.watch({"file": A})
    with servers() as start:
        server = start(lambda connection, *_: connection.sendall(head + body) is None)
        world.app.base_url = server.url
        world.app.save()
        watch = world.sync(watch)
    failure = watch.failures.get()
    assert (failure.cause, failure.status_code, len(failure.body)) == ("http", 500, 500)
    assert failure.body.startswith("\ufffdbad ")
    assert failure.body.replace("\ufffd", "").isprintable()


# --- Sequences -----------------------------------------------------------------------------------------------------------


def sequences_of(world: World, path: str) -> list[int]:
    return [record.sequence for record in world.requests() if record.path == path]


def test_sequences_increase_after_unwatch_and_watch(world: World) -> None:
    repo, watch = world.watch({"file": A})
    world.sync(watch)
    unwatch_repository(Actor.command(), watch)
    assert remove_ended() == 1
    again = world.sync(world.watch_url(repo))
    assert again.pk != watch.pk
    first, second = sequences_of(world, "file")
    assert first < second < 2**53
    assert len({record.webhook_id for record in world.requests()}) == 2


def test_sequences_increase_after_a_restored_backup(world: World) -> None:
    repo, watch = world.watch({"file": A})
    before = AppRepository.objects.filter(pk=watch.pk).values("sequence_high").get()
    world.sync(watch)
    AppRepository.objects.filter(pk=watch.pk).update(**before)
    repo.commit({"file": B})
    world.sync(watch)
    first, second = sequences_of(world, "file")
    assert first < second


def test_sequences_increase_after_the_clock_was_set_back(world: World) -> None:
    repo, watch = world.watch({"file": A, "more": A})
    world.sync(watch)
    ahead = int((time.time() + 3600) * 1_000_000)
    AppRepository.objects.filter(pk=watch.pk).update(sequence_high=ahead)  # drawn while the clock was an hour ahead
    repo.commit({"file": B, "more": B})
    world.sync(watch)
    drawn = [record.sequence for record in world.requests("update")]
    assert len(set(drawn)) == 2
    assert all(ahead < number < ahead + 10 for number in drawn)


def test_resync_draws_new_sequences_for_content_in_doubt(world: World) -> None:
    repo, watch = world.watch({"file": A})
    world.answer(refusing("file"))
    world.sync(watch)
    resync_single(Actor.command(), watch)
    world.answer(None)
    world.settle()
    first, second = sequences_of(world, "file")
    assert first < second
    assert len({record.webhook_id for record in world.requests()}) == 2
    assert_promise_kept(world, repo, watch)


def test_resync_during_a_run_reuses_no_id_for_other_content(world: World) -> None:
    repo, watch = world.watch({f"{n}": A for n in range(6)})
    world.answer(at_notification(3, lambda: (repo.commit({"5": B}), resync_single(Actor.command(), watch))))
    world.sync(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)
    contents = {(record.webhook_id, record.path, record.sha) for record in world.requests()}
    assert len(contents) == len({record.webhook_id for record in world.requests()})
