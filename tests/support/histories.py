"""What histories are made of: somebody who interferes at a chosen notification, a worker that is killed there, and the
promise that has to hold at the end of every one of them."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping

from django.db import connections
from django.db.models import F

from deliveries_app import sync as sync_module
from deliveries_app.kinds import PHASES
from deliveries_app.models import AppRepository, Delivery, Status
from deliveries_app.plan import Plan, Terms
from deliveries_app.planning import Planned, full_plan
from deliveries_app.receiver import Answer, Notification
from deliveries_app.rules import rules_of
from deliveries_app.sync import sync
from repositories_app.git import Tick
from repositories_app.mirror import Entry, Mirror
from repositories_app.remote import Head
from tests.support.git import Repo
from tests.support.processes import forked
from tests.support.receiver import wait_for
from tests.support.world import World

Hook = Callable[[Notification], Answer | None]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shas(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: sha(content) for path, content in files.items()}


def under_rules(files: Mapping[str, bytes], patterns: str = "") -> dict[str, bytes]:
    """The files without those that the tree's own `.docoraignore` or a watch's patterns match."""
    rules = rules_of(files.get(".docoraignore", b""), patterns)
    return {
        path: content
        for path, content in files.items()
        if not rules.ignores(Entry(path.encode(), "100644", "", len(content)))
    }


def assert_promise_kept(
    world: World, repo: Repo, pair: AppRepository, files: Mapping[str, bytes] | None = None
) -> None:
    """The client's copy equals HEAD byte for byte, or `files` where rules leave out or change some, and Docora says so."""
    pair.refresh_from_db()
    expected = shas(repo.files() if files is None else files)
    assert world.copy(pair) == expected
    assert (pair.status, pair.last_commit, pair.files_failing) == (Status.SYNCED, repo.head, 0)
    held = Delivery.objects.filter(pair=pair)
    assert dict(held.values_list("path", "sha")) == expected
    assert not held.exclude(acknowledged=True, held_sha=F("sha"), generation__gte=pair.resend_floor).exists()
    assert not pair.failures.filter(kind="failed").exists()


def in_doubt(pair: AppRepository) -> set[str]:
    """The paths of which nobody knows whether the client was told."""
    return set(Delivery.objects.filter(pair=pair, acknowledged=False).values_list("path", flat=True))


def refusing(*paths: str, status: int = 500, headers: Mapping[str, str] | None = None) -> Hook:
    """A client that answers `status` for these paths, whatever it is told about them."""
    return lambda note: Answer(status, headers=headers or {}) if note.path in paths else None


def at_notification(number: int, action: Callable[[], object], then: Answer | None = None) -> Hook:
    """`action` once, while the client works on its notification `number`; that one is answered with `then`.

    It runs in the receiver's thread with a database connection of its own, as somebody else's would.
    """
    seen = iter(range(1, 1_000_000))

    def hook(note: Notification) -> Answer | None:
        if next(seen) != number:
            return None
        try:
            action()
        finally:
            connections.close_all()
        return then

    return hook


def kill_worker(
    world: World, pair: AppRepository, when: Callable[[Notification], bool], *, processed: bool = True
) -> None:
    """An attempt in a process of its own, killed (-9) while the client works on the first notification that `when` is
    true for. `processed`: the client keeps it all the same. The dead worker's lease runs out."""
    assert _kill_worker(world, pair, when, processed=processed), "the attempt ended before it was killed"


def maybe_kill_worker(world: World, pair: AppRepository, number: int, *, processed: bool) -> bool:
    """The same at its notification `number`, if it gets so far. Whether it was killed."""
    seen = iter(range(1, 1_000_000))
    return _kill_worker(world, pair, lambda note: next(seen) == number, processed=processed)


def _kill_worker(world: World, pair: AppRepository, when: Callable[[Notification], bool], *, processed: bool) -> bool:
    child = 0
    asked = 0
    killed = False

    def hook(note: Notification) -> Answer | None:
        nonlocal asked, killed
        asked += 1
        if killed or not when(note):
            return None
        killed = True
        os.kill(child, signal.SIGKILL)
        return None if processed else Answer(close=True)

    already = len(world.receiver.log)
    world.make_due(pair)
    world.answer(hook)
    child = _fork(pair, lambda: None)
    was_killed = _was_killed(child)
    wait_for(lambda: len(world.receiver.log) - already == asked)
    world.answer(None)
    let_lease_run_out(pair)
    return was_killed


def kill_worker_before_first_byte(world: World, pair: AppRepository, *, or_nothing: bool = False) -> None:
    """An attempt in a process of its own, killed (-9) when it has announced its first block and sent nothing.

    `or_nothing`: there may be nothing to announce."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def prepare() -> None:
        from deliveries_app.sender import Sender

        Sender._submit = die  # type: ignore[method-assign]  # in the child only

    world.make_due(pair)
    was_killed = _was_killed(_fork(pair, prepare))
    assert was_killed or or_nothing, "there was nothing to announce"
    let_lease_run_out(pair)


def given_up(world: World, pair: AppRepository) -> AppRepository:
    """After two attempts, and no more are left, at which the client refuses 3.txt and 5.txt; it takes them from now on."""
    world.answer(refusing("3.txt", "5.txt"))
    world.sync(pair)
    pair = world.sync(pair)
    assert (pair.status, pair.is_failing) == (Status.FAILED, True)
    world.answer(None)
    return pair


def let_lease_run_out(pair: AppRepository) -> None:
    AppRepository.objects.filter(pk=pair.pk).update(lease_until=None)
    pair.refresh_from_db()


def _fork(pair: AppRepository, prepare: Callable[[], None]) -> int:
    def work() -> None:
        prepare()
        sync(pair.pk)

    return forked(work)


def _was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the attempt ended with {status}"
    return os.WIFSIGNALED(status)


@contextlib.contextmanager
def watching_plans() -> Iterator[list[Planned]]:
    """Every plan that is made inside, in order; `among` is None for a full one. Each is compared with the full plan."""
    plans: list[Planned] = []
    different: list[Planned] = []
    original = sync_module.plan_to

    def spy(head: Head, pair: AppRepository, terms: Terms, mirror: Mirror, tick: Tick) -> Planned:
        planned = original(head, pair, terms, mirror, tick)
        full = full_plan(head, pair, terms, mirror, tick).plan
        if _contents(planned.plan) != _contents(full):
            different.append(planned)
        full.close()
        plans.append(planned)
        return planned

    sync_module.plan_to = spy
    try:
        yield plans
    finally:
        sync_module.plan_to = original
    assert different == [], "a fast plan was not the full plan"


def _contents(plan: Plan) -> tuple[object, ...]:
    return plan.tree_files, plan.tree_bytes, plan.left_out, *(list(plan.phase(kind)) for kind in PHASES)
