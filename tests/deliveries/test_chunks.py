"""Large files in chunks (engine.md §7, the wire contract §1), sent to a client that counts the chunks of each id."""

import base64
import functools
import gc
import itertools
import os
import random
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
from django.db import OperationalError

from deliveries_app.models import App, Status
from deliveries_app.receiver import Answer, Notification, Record
from deliveries_app.receiver.server import HTTPHandler
from deliveries_app.sync import responses, sender
from deliveries_app.sync.attempt import Attempt
from deliveries_app.sync.lease import Lease
from docora.http.client import Request
from repositories_app import services as repositories
from repositories_app.mirror.blobs import BlobReader
from tests.support.histories import assert_promise_kept, kill_worker, sha
from tests.support.processes import children, syncing
from tests.support.world import World

LARGE = bytes(range(256)) * 2  # 684 characters of base64: 7 chunks
TEXT = b"a line of text\n" * 30
BUSY = Answer(429, headers={"Retry-After": "0"})


@pytest.fixture(autouse=True)
def _small_chunks(settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 100, 100


class CountingClient:
    """A client as in the existing documentation: it takes a file for complete once `total` chunks of one id have arrived.

    Order and repetitions do not matter to it. `answer` may decide whether a chunk is counted, and what is answered.
    """

    def __init__(self) -> None:
        self.pieces: dict[str, list[tuple[int, str]]] = {}
        self.files: dict[str, str] = {}
        self.early: list[str] = []
        self.answer: Callable[[Notification], tuple[bool, Answer | None]] = lambda note: (True, None)
        self._lock = threading.Lock()

    def __call__(self, note: Notification) -> Answer | None:
        with self._lock:
            counted, answer = self.answer(note)
            if counted and note.chunk:
                self._count(note)
            return answer

    def _count(self, note: Notification) -> None:
        assert note.chunk
        pieces = self.pieces.setdefault(note.chunk.id, [])
        pieces.append((note.chunk.index, note.content))
        if len(pieces) == note.chunk.total:
            try:
                content = base64.b64decode("".join(piece for _, piece in sorted(pieces)), validate=True)
            except ValueError:
                content = b""
            if sha(content) != note.sha or len(content) != note.size:
                self.early.append(note.path)
            self.files[note.path] = sha(content)


@pytest.fixture
def client(world: World) -> CountingClient:
    client = CountingClient()
    world.answer(client)
    return client


def chunks(world: World, path: str = "large") -> list[Record]:
    return [record for record in world.requests() if record.path == path]


def indexes(records: list[Record]) -> list[int]:
    return [record.chunk.index for record in records if record.chunk]


def ids(records: list[Record]) -> list[str]:
    """The chunk ids in order of their first appearance."""
    return list(dict.fromkeys(record.chunk.id for record in records if record.chunk))


def once(index: int, counted: bool, answer: Answer) -> Callable[[Notification], tuple[bool, Answer | None]]:
    """Answer the first chunk `index` like this."""
    left = [answer]
    return lambda note: (counted, left.pop()) if left and note.chunk and note.chunk.index == index else (True, None)


def test_chunks_are_sent_in_order_under_one_id(world: World, client: CountingClient) -> None:
    repo, watch = world.watch({"large": LARGE, "text": TEXT, "small": b"small"})
    world.settle()
    for path in ("large", "text"):
        records = chunks(world, path)
        assert indexes(records) == list(range(records[0].chunk.total))  # type: ignore[union-attr]
        assert all(first.answered_at <= then.received_at for first, then in itertools.pairwise(records))
        assert len(ids(records)) == len({record.sequence for record in records}) == 1
        assert len({record.webhook_id for record in records}) == len(records)
        assert not any("." in record.webhook_id for record in records)
    assert client.files == {"large": sha(LARGE), "text": sha(TEXT)}
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize(("status", "index"), [(429, 0), (503, 3), (429, 6)])
def test_unprocessed_chunk_is_resent_unchanged(world: World, client: CountingClient, status: int, index: int) -> None:
    repo, watch = world.watch({"large": LARGE})
    client.answer = once(index, False, Answer(status, headers={"Retry-After": "0"}))
    watch = world.sync(watch)
    records = chunks(world)
    assert indexes(records) == [*range(index + 1), *range(index, 7)]
    assert len(ids(records)) == 1
    assert records[index].webhook_id == records[index + 1].webhook_id
    assert client.files == {"large": sha(LARGE)}
    assert client.early == []
    assert_promise_kept(world, repo, watch)


def test_chunk_is_resent_after_a_refused_connection(world: World, client: CountingClient, monkeypatch) -> None:
    monkeypatch.setattr(responses, "RETRY_UNREACHED", 0.1)
    repo, watch = world.watch({"large": LARGE})
    world.receiver.stop()
    again = threading.Timer(0.25, world.receiver.start)
    again.start()
    world.sync(watch)
    again.join()
    assert indexes(chunks(world)) == list(range(7))
    assert len(ids(chunks(world))) == 1
    assert client.files == {"large": sha(LARGE)}
    assert_promise_kept(world, repo, watch)


DOUBTFUL = {
    "an error": (3, Answer(500)),
    "an error of a proxy": (5, Answer(502)),
    "busy without Retry-After": (1, Answer(503)),
    "no answer": (3, Answer(close=True)),
    "no answer to the first": (0, Answer(close=True)),
}


@pytest.mark.parametrize(("index", "answer"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_chunk_in_doubt_restarts_the_file_under_a_new_id(
    world: World, client: CountingClient, index: int, answer: Answer
) -> None:
    """A retry under the old id would complete the file too early, or never."""
    repo, watch = world.watch({"large": LARGE, "other": b"small"})
    client.answer = once(index, True, answer)
    watch = world.sync(watch)
    if answer.status != 503:  # that is only a pause, in the same run
        assert (watch.status, set(world.copy(watch))) == (Status.PENDING, {"other"})
    world.settle()
    records = chunks(world)
    assert indexes(records) == [*range(index + 1), *range(7)]
    assert len(ids(records)) == 2
    assert len({record.webhook_id for record in records}) == len(records)
    assert len({record.sequence for record in records}) == 1  # it is the same notification
    assert client.files == {"large": sha(LARGE)}
    assert client.early == []
    assert_promise_kept(world, repo, watch)


def test_lost_response_to_the_last_chunk(world: World, client: CountingClient) -> None:
    repo, watch = world.watch({"large": LARGE})
    client.answer = once(6, True, Answer(close=True, process=True))
    world.sync(watch)
    assert client.files == {"large": sha(LARGE)}
    world.settle()
    assert indexes(chunks(world)) == [*range(7), *range(7)]
    assert client.early == []
    assert_promise_kept(world, repo, watch)


def test_worker_killed_between_chunks(world: World, client: CountingClient) -> None:
    repo, watch = world.watch({"large": LARGE})
    kill_worker(world, watch, lambda note: bool(note.chunk and note.chunk.index == 4))
    world.answer(client)
    world.settle()
    records = chunks(world)
    assert indexes(records) == [*range(5), *range(7)]
    assert len(ids(records)) == 2
    assert len({record.sequence for record in records}) == 1
    assert client.files == {"large": sha(LARGE)}
    assert_promise_kept(world, repo, watch)


def test_busy_chunk_does_not_block_other_files(world: World, client: CountingClient, monkeypatch) -> None:
    monkeypatch.setattr("deliveries_app.sync.sender.MAX_WAITS", 2)
    repo, watch = world.watch({"large": LARGE, "other": b"small"})
    client.answer = lambda note: (False, BUSY) if note.chunk and note.chunk.index == 2 else (True, None)
    watch = world.sync(watch)
    assert (watch.status, set(world.copy(watch))) == (Status.PENDING, {"other"})
    assert indexes(chunks(world)) == [0, 1, 2, 2, 2]
    client.answer = lambda note: (True, None)
    world.settle()
    assert len(ids(chunks(world))) == 2
    assert client.early == []
    assert_promise_kept(world, repo, watch)


def refuse_each_chunk_once(client: CountingClient, how: Answer) -> set[int]:
    """Let the client refuse each chunk of a file the first time. Return the set of the chunks that it has refused so far."""
    refused = set[int]()

    def answer(note: Notification) -> tuple[bool, Answer | None]:
        assert note.chunk
        if note.chunk.index in refused:
            return True, None
        refused.add(note.chunk.index)
        return False, how

    client.answer = answer
    return refused


def test_refusals_of_different_chunks_are_not_in_a_row(world: World, client: CountingClient, monkeypatch) -> None:
    """A chunk that is accepted between them shows that the app makes progress, so the run need not end."""
    monkeypatch.setattr(responses, "LONGEST_WAIT", 1.5)  # one second for the first refusal, two for a second in a row
    repo, watch = world.watch({"large": LARGE[:150]})
    refuse_each_chunk_once(client, Answer(429))
    assert world.sync(watch).status == Status.SYNCED
    assert indexes(chunks(world)) == [0, 0, 1, 1]
    assert len(ids(chunks(world))) == 1
    assert_promise_kept(world, repo, watch)


def test_large_file_is_sent_although_each_chunk_is_refused_once(world: World, client: CountingClient) -> None:
    """Together, that is more often than a notification may wait."""
    repo, watch = world.watch({"large": LARGE})
    refused = refuse_each_chunk_once(client, BUSY)
    assert world.sync(watch).status == Status.SYNCED
    assert len(refused) == 7 > sender.MAX_WAITS
    assert len(ids(chunks(world))) == 1
    assert_promise_kept(world, repo, watch)


def test_answers_are_read_while_large_files_are_hashed(world: World, settings, monkeypatch) -> None:
    settings.RECORD_BATCH = 20
    repo, watch = world.watch(
        {f"{size}-{number:02}": b"%d" % number * size for size in (1, 101) for number in range(20)}
    )
    monkeypatch.setattr(sender, "Request", functools.partial(Request, timeout=1.0))
    stream = BlobReader.stream

    def slow_stream(reader: BlobReader, blob: str) -> Iterator[bytes]:
        time.sleep(0.1)  # 20 such files take twice as long as a request may
        return stream(reader, blob)

    monkeypatch.setattr(BlobReader, "stream", slow_stream)
    world.answer(lambda note: time.sleep(0.1))  # type: ignore[func-returns-value]
    assert world.sync(watch).status == Status.SYNCED
    sent = [record.path for record in world.requests() if record.path.startswith("1-")]
    assert len(sent) == len(set(sent)) == 20
    assert_promise_kept(world, repo, watch)


def test_client_that_counts_chunks_never_completes_early(world: World, client: CountingClient, settings) -> None:
    settings.MAX_RETRY_ATTEMPTS = 1000
    chance = random.Random(20260104)
    files = {f"{n}": chance.randbytes(chance.randrange(101, 500)) for n in range(5)}
    repo, watch = world.watch(files)
    fates = [(False, BUSY), (True, Answer(500)), (False, Answer(500)), (True, Answer(close=True))]
    client.answer = lambda note: chance.choice(fates) if chance.random() < 0.15 else (True, None)
    for _ in range(40):
        if world.sync(watch).status == Status.SYNCED:
            break
        watch.refresh_from_db()
    assert client.early == []
    assert client.files == {path: sha(content) for path, content in files.items()}
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("damage", ["lost", "truncated"])
def test_mirror_damaged_while_large_files_are_sent_is_rebuilt(world: World, settings, damage: str) -> None:
    """No git process that reads them may be left: the mirror would stay in use, and the run would wait for itself."""
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 100_000, 100_000
    repo, watch = world.watch({"a": b"small", **{f"large-{number}": os.urandom(3 << 20) for number in range(4)}})
    App.objects.update(max_in_flight=2)
    damaged = []

    def hook(note: Notification) -> None:
        if not damaged:
            damaged.append(note)
            for pack in repositories.mirror_of(watch.repository).directory.glob("objects/pack/*.pack"):
                pack.chmod(0o600)
                pack.unlink() if damage == "lost" else os.truncate(pack, 1000)

    world.answer(hook)
    world.make_due(watch)
    worker = syncing(watch.pk)
    worker.join(15)
    hangs = worker.is_alive()
    if hangs:
        world.git.server.stop()
    assert not hangs
    watch.refresh_from_db()
    assert watch.status == Status.SYNCED
    assert_promise_kept(world, repo, watch)


def test_client_closes_its_connections_without_announcing_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that goes out on the dead connection may have been counted. The next attempt uses new connections."""

    def handle_one_request(handler: HTTPHandler) -> None:
        handler.handle_one_request()
        select.select([handler.connection], [], [], 5)  # closed when the next request arrives

    monkeypatch.setattr(HTTPHandler, "handle", handle_one_request)
    repo, watch = world.watch({"large.bin": LARGE})
    assert world.sync(watch).files_failing == 1
    world.sync(watch)
    assert_promise_kept(world, repo, watch)


def test_lost_database_leaves_no_git_process_and_no_attempt(
    world: World, client: CountingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would hold the mirror and memory until Python's next collection."""
    _, watch = world.watch({f"{number}": b"%d" % number * 5000 for number in range(6)})
    extend = Lease.extend

    def fails(lease: Lease, **changes: object) -> None:
        if len(world.requests()) > 40:
            raise OperationalError("the server closed the connection")
        extend(lease, **changes)

    monkeypatch.setattr(Lease, "extend", fails)
    monkeypatch.setattr(Lease, "extension_is_due", True)
    processes, attempts = set(children(os.getpid())), weakref.WeakSet(attempts_alive())
    gc.disable()
    try:
        with pytest.raises(OperationalError):
            world.sync(watch)
        assert set(children(os.getpid())) <= processes
        assert set(attempts_alive()) <= set(attempts)
    finally:
        gc.enable()
    assert repositories.mirror_of(watch.repository).remove(wait=False)


def attempts_alive() -> list[Attempt]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Attempt)]
