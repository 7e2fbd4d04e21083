"""Kill (-9) a worker at each of the six steps of a run: claim, mirror, plan, announce and send, record, finish."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

from deliveries_app.models import AppRepository, Outcome, Status, SyncRun, bulk_sql
from deliveries_app.sync import attempt as engine
from deliveries_app.sync import outcomes
from deliveries_app.sync.recorder import Recorder
from deliveries_app.sync.sender import Sender
from docora import file_locks
from repositories_app import services as repositories
from repositories_app.git import packs
from repositories_app.mirror import tree
from repositories_app.mirror.mirror import Mirror
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, in_doubt, let_lease_run_out
from tests.support.processes import forked, is_alive, offspring
from tests.support.receiver import Answer, Notification, wait_for
from tests.support.syncing import sync
from tests.support.trickle import pack_sent, trickling
from tests.support.world import World

RECORD_BATCH, MAX_IN_FLIGHT = 3, 2
BEFORE = {f"{number:02}.txt": b"content %d" % number for number in range(8)}
CHANGES = {"00.txt": None, "01.txt": None, "02.txt": b"other", "03.txt": b"other", "new/a.txt": b"a", "new/b.txt": b"b"}
# Larger than the pipes between git and its helpers: a kill finds all of them at work.
LARGE = {"large.bin": os.urandom(3_000_000)}


class Victim:
    """An attempt in its own process. `kill` first writes down which processes it has started."""

    def __init__(self, folder: Path) -> None:
        self.pid = 0
        self._parent = os.getpid()
        self._family = folder / "family"

    def start(self, watch: AppRepository, prepare: Callable[[], None]) -> None:
        def work() -> None:
            prepare()
            sync(watch.pk)

        self.pid = forked(work)

    def kill(self) -> None:
        """Kill the attempt, from this process or from the attempt itself."""
        pid = wait_for(lambda: self.pid) if os.getpid() == self._parent else os.getpid()
        self._family.write_text(" ".join(map(str, offspring(pid))))
        os.kill(pid, signal.SIGKILL)

    @property
    def family(self) -> list[int]:
        return [int(pid) for pid in self._family.read_text().split()]

    def wait(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status), "the attempt ended before it was killed"


def dies_before(place: object, name: str) -> Callable[[World, Victim], Callable[[], None]]:
    """Die when the victim calls this function."""

    def arrange(world: World, victim: Victim) -> Callable[[], None]:
        return lambda: setattr(place, name, lambda *_, **__: victim.kill())

    return arrange


def dies_after(place: object, name: str) -> Callable[[World, Victim], Callable[[], None]]:
    def arrange(world: World, victim: Victim) -> Callable[[], None]:
        original = getattr(place, name)

        def last(*arguments: object, **named: object) -> None:
            original(*arguments, **named)
            victim.kill()

        return lambda: setattr(place, name, last)

    return arrange


def dies_while_reading_the_tree(world: World, victim: Victim) -> Callable[[], None]:
    original = tree.stored_entries

    def halfway(raw: bytes, id_bytes: int) -> Iterator[tuple[bytes, bytes, bytes]]:
        for entry in original(raw, id_bytes):
            yield entry
            victim.kill()

    return lambda: setattr(tree, "stored_entries", halfway)


def let_git_fetch() -> None:
    """Leave every pack to git, as if it were large."""
    packs.MAX_PACK = 0


def dies_at_git_request(
    part: str, number: int = 0, prepare: Callable[[], None] = lambda: None
) -> Callable[[World, Victim], Callable[[], None]]:
    """Die while the git host handles this one of the requests whose path contains `part`."""

    def arrange(world: World, victim: Victim) -> Callable[[], None]:
        requests = iter(range(1000))

        def hook(method: str, target: str) -> None:
            if part in target and next(requests) == number:
                victim.kill()

        world.git.server.on_request = hook
        return prepare

    return arrange


def dies_in_the_middle_of_the_pack(world: World, victim: Victim) -> Callable[[], None]:
    """Die when git has written the first half of the pack."""
    repo = Repo("acme/widgets", world.git.directory / "acme/widgets.git", world.git.server)
    answer = pack_sent(repo, negotiated=True)
    send_half = trickling(answer, at_once=len(answer) // 2, until=threading.Event())

    def takeover(connection: socket.socket) -> None:
        threading.Thread(target=send_half, args=(connection.dup(),), daemon=True).start()
        wait_for(lambda: [path for path in Path(settings.REPOS_DIR).rglob("tmp_pack_*") if path.stat().st_size])
        victim.kill()

    # The first one is for HEAD, the second one Docora's own for the pack. If git refused the third answer, it would ask again.
    answers = iter((None, None, takeover))
    world.git.server.on_request = lambda method, _: next(answers, 404) if method == "POST" else None
    return let_git_fetch


def dies_at_notification(number: int, then: Answer | None) -> Callable[[World, Victim], Callable[[], None]]:
    def arrange(world: World, victim: Victim) -> Callable[[], None]:
        notes = iter(range(1, 1000))

        def hook(note: Notification) -> Answer | None:
            if next(notes) != number:
                return None
            victim.kill()
            return then

        world.answer(hook)
        return lambda: None

    return arrange


STEPS = {
    "right after the claim": dies_after(engine, "claim"),
    "while HEAD is requested": dies_at_git_request("git-upload-pack"),
    "while the pack is requested": dies_at_git_request("git-upload-pack", 1),
    "before the pack is stored": dies_before(Mirror, "_write_file"),
    "before the pack is kept": dies_before(Mirror, "_write_ref"),
    "while git requests the refs": dies_at_git_request("info/refs", 0, let_git_fetch),
    "in the middle of git's pack": dies_in_the_middle_of_the_pack,
    "after the fetch": dies_after(Mirror, "fetch"),
    "during planning": dies_while_reading_the_tree,
    "after planning": dies_after(engine.runs, "set_totals"),
    "in the transaction that announces": dies_after(bulk_sql, "announce"),
    "before the first byte": dies_before(Sender, "_submit"),
    "while the client handles a delete": dies_at_notification(1, None),
    "while the client loses a delete": dies_at_notification(1, Answer(close=True)),
    "while the client handles a create": dies_at_notification(3, None),
    "while the client loses an update": dies_at_notification(6, Answer(close=True)),
    "before an acknowledgement is recorded": dies_before(Recorder, "acknowledge"),
    "in the transaction that records": dies_after(Recorder, "_write_acknowledged"),
    "right before the outcome is recorded": dies_before(outcomes, "succeeded"),
    "in the transaction that records the outcome": dies_after(outcomes, "succeeded"),
    "right after the outcome is recorded": dies_before(Mirror, "repack_if_many"),
}


def watch_with_changes(world: World) -> tuple[Repo, AppRepository]:
    """Return a synced watch whose repository then got deleted, changed and new files."""
    world.app.max_in_flight = MAX_IN_FLIGHT
    world.app.save()
    repo, watch = world.watch(BEFORE)
    world.settle()
    repo.commit(CHANGES | LARGE)
    world.make_due(watch)
    return repo, watch


@pytest.mark.parametrize("step", STEPS)
def test_worker_killed_at_any_step(world: World, tmp_path: Path, settings, step: str) -> None:
    settings.RECORD_BATCH = RECORD_BATCH
    repo, watch = watch_with_changes(world)
    sent = len(world.requests())
    victim = Victim(tmp_path)
    victim.start(watch, STEPS[step](world, victim))
    victim.wait()
    world.answer(None)
    world.git.server.on_request = None
    wait_for(lambda: not any(map(is_alive, victim.family)))
    wait_for(lambda: is_unlocked(repositories.mirror_of(watch.repository)))
    ended = step == "right after the outcome is recorded"
    watch.refresh_from_db()
    assert (watch.status, watch.retry_count) == ((Status.SYNCED, 0) if ended else (Status.SCANNING, 1))
    let_lease_run_out(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert in_doubt(watch) == set()
    assert (watch.lease_until, watch.lease_slots, watch.next_sync_at, watch.retry_count) == (None, 0, None, 0)
    runs = world.runs(watch)
    assert [run.outcome for run in runs] == [Outcome.SUCCEEDED] * 2
    assert all(run.files_done == run.files_total for run in runs)
    assert not SyncRun.objects.filter(ended_at=None).exists()
    changed = len(CHANGES) + len(LARGE)
    names = {record.path for record in world.requests()[sent:]}
    assert len(names) == changed
    whole = [record for record in world.requests()[sent:] if record.chunk is None]
    assert len(whole) - (changed - len(LARGE)) <= RECORD_BATCH + MAX_IN_FLIGHT
    left = [path.name for path in repositories.mirror_of(watch.repository).directory.rglob("*") if is_left_over(path)]
    assert left == []


def is_unlocked(mirror: Mirror) -> bool:
    """Return whether the mirror is unlocked. The threads of a killed git hold its files a moment longer than it lives."""
    for name in ("fetch", "use"):
        try:
            with file_locks.hold(Path(f"{mirror.directory}.{name}.lock"), shared=False, wait=False):
                pass
        except BlockingIOError:
            return False
    return True


def is_left_over(path: Path) -> bool:
    return path.name.startswith(("tmp_", ".tmp")) or path.name.endswith(".lock")
