"""Building blocks for histories: act at a chosen notification, kill workers, check that the client is in sync."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

from django.db import connections
from django.db.models import F
from django.db.models.functions import Now

from deliveries_app.models import AppRepository, Delivery, Status
from deliveries_app.models.deliveries import PHASES
from deliveries_app.planning.ignore_rules import build_rules
from deliveries_app.planning.plan import DeliveryRules, Plan
from deliveries_app.planning.planner import full_plan
from deliveries_app.receiver import Answer, Notification
from deliveries_app.sync import attempt as sync_module
from repositories_app.git.process import Tick
from repositories_app.git.protocol import Head
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.tree import Entry
from tests.support.git import Repo
from tests.support.processes import forked
from tests.support.receiver import wait_for
from tests.support.syncing import sync
from tests.support.world import World

Hook = Callable[[Notification], Answer | None]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def shas(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: sha(content) for path, content in files.items()}


def without_ignored(
    files: Mapping[str, bytes], patterns: str = "", include: str = "", exclude: str = ""
) -> dict[str, bytes]:
    """Return the files that an app gets, by the tree's `.docoraignore`, the patterns of its watch, and its own choice."""
    rules = [build_rules(files.get(".docoraignore", b""), patterns), build_rules(b"", exclude)]
    included = build_rules(b"", include or "*")
    entries = {path: Entry(path.encode(), "100644", "", len(content)) for path, content in files.items()}
    return {
        path: files[path]
        for path, entry in entries.items()
        if included.matches(entry) and not any(rule.matches(entry) for rule in rules)
    }


def assert_promise_kept(
    world: World,
    repo: Repo,
    watch: AppRepository,
    files: Mapping[str, bytes] | None = None,
    *,
    revision: str = "HEAD",
) -> None:
    """Assert that the client's copy equals HEAD, or another `revision`, and Docora knows it. Pass `files` if rules leave out
    or change some."""
    watch.refresh_from_db()
    expected = shas(repo.files(revision) if files is None else files)
    assert world.copy(watch) == expected
    head = repo.head if revision == "HEAD" else repo.commit_of(revision)
    assert (watch.status, watch.last_commit, watch.files_failing) == (Status.SYNCED, head, 0)
    rows = Delivery.objects.filter(watch=watch)
    assert dict(rows.values_list("path", "sha")) == expected
    assert not rows.exclude(acknowledged=True, acknowledged_sha=F("sha"), generation__gte=watch.resend_floor).exists()
    assert not watch.failures.filter(kind="failed").exists()


def in_doubt(watch: AppRepository) -> set[str]:
    """Return the paths that are in doubt."""
    return set(Delivery.objects.filter(watch=watch, acknowledged=False).values_list("path", flat=True))


def refusing(*paths: str, status: int = 500, headers: Mapping[str, str] | None = None) -> Hook:
    """Return a hook that answers `status` to every notification about these paths."""
    return lambda note: Answer(status, headers=headers or {}) if note.path in paths else None


def at_notification(number: int, action: Callable[[], object], then: Answer | None = None) -> Hook:
    """Return a hook that runs `action` during notification `number` and answers that notification with `then`.

    It runs in the receiver's thread with its own database connection, like another process.
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
    world: World, watch: AppRepository, when: Callable[[Notification], bool], *, processed: bool = True
) -> None:
    """Run an attempt in a child process and kill it (-9) during the first notification for which `when` is true.

    With `processed`, the client stores that notification. Then the dead worker's lease expires.
    """
    assert _kill_worker(world, watch, when, processed=processed), "the attempt ended before it was killed"


def maybe_kill_worker(world: World, watch: AppRepository, number: int, *, processed: bool) -> bool:
    """Kill a worker at its notification `number`. Return whether it got that far."""
    seen = iter(range(1, 1_000_000))
    return _kill_worker(world, watch, lambda note: next(seen) == number, processed=processed)


def _kill_worker(world: World, watch: AppRepository, when: Callable[[Notification], bool], *, processed: bool) -> bool:
    child = 0
    requests = 0
    killed = False

    def hook(note: Notification) -> Answer | None:
        nonlocal requests, killed
        requests += 1
        if killed or not when(note):
            return None
        killed = True
        os.kill(child, signal.SIGKILL)
        return None if processed else Answer(close=True)

    already = len(world.receiver.log)
    world.make_due(watch)
    world.answer(hook)
    child = _fork(watch, lambda: None)
    was_killed = _was_killed(child)
    wait_for(lambda: len(world.receiver.log) - already == requests)
    world.answer(None)
    let_lease_run_out(watch)
    return was_killed


def kill_worker_before_first_byte(world: World, watch: AppRepository, *, or_nothing: bool = False) -> None:
    """Run an attempt in a child process and kill it (-9) after it announced its first block, before it sends anything.

    With `or_nothing`, there may be nothing to announce.
    """

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def prepare() -> None:
        from deliveries_app.sync.sender import Sender

        Sender._submit = die  # type: ignore[method-assign]  # only in the child process

    world.make_due(watch)
    was_killed = _was_killed(_fork(watch, prepare))
    assert was_killed or or_nothing, "there was nothing to announce"
    let_lease_run_out(watch)


def given_up(world: World, watch: AppRepository) -> AppRepository:
    """Use up both attempts with a client that refuses 3.txt and 5.txt. From then on it accepts them."""
    world.answer(refusing("3.txt", "5.txt"))
    world.sync(watch)
    watch = world.sync(watch)
    assert (watch.status, watch.is_failing) == (Status.FAILED, True)
    world.answer(None)
    return watch


def let_lease_run_out(watch: AppRepository) -> None:
    AppRepository.objects.filter(pk=watch.pk, lease_until__isnull=False).update(
        lease_until=F("created_at") - timedelta(minutes=1)
    )
    watch.refresh_from_db()


def _fork(watch: AppRepository, prepare: Callable[[], None]) -> int:
    def work() -> None:
        prepare()
        sync(watch.pk)

    return forked(work)


def _was_killed(child: int) -> bool:
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the attempt ended with {status}"
    return os.WIFSIGNALED(status)


@contextlib.contextmanager
def compare_plans() -> Iterator[list[Plan]]:
    """Record every plan made inside, and assert that it equals the full plan. `paths` is None for full plans."""
    plans: list[Plan] = []
    different: list[Plan] = []
    original = sync_module.plan_to

    def spy(head: Head, watch: AppRepository, rules: DeliveryRules, reader: BlobReader, tick: Tick) -> Plan:
        plan = original(head, watch, rules, reader, tick)
        full = full_plan(head, watch, rules, reader, tick)
        if _contents(plan) != _contents(full):
            different.append(plan)
        full.close()
        plans.append(plan)
        return plan

    sync_module.plan_to = spy
    try:
        yield plans
    finally:
        sync_module.plan_to = original
    assert different == [], "a fast plan differs from the full plan"


def _contents(plan: Plan) -> tuple[object, ...]:
    return plan.tree_files, plan.tree_bytes, plan.left_out, *(list(plan.phase(kind)) for kind in PHASES)


def seconds_until_next_sync(watch: AppRepository) -> float:
    wait = AppRepository.objects.annotate(wait=F("next_sync_at") - Now()).get(pk=watch.pk).wait
    return float(wait.total_seconds())


def assert_held_back(world: World, watch: AppRepository) -> None:
    """An attempt sends nothing and is postponed: the app may still be processing an earlier request for up to 30 s."""
    sent = len(world.requests())
    world.sync(watch)
    assert len(world.requests()) == sent
    assert 20 < seconds_until_next_sync(watch) <= 30
