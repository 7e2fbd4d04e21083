"""Everything that can happen to Docora, one method each.

Two apps, two repositories, three places for a watch: acme/one for both apps, acme/two for the first. The components are real:
git and its server, the database, Redis, sockets, and worker processes that are really killed. Only waits are
shorter: request timeouts, holds and backoffs. Longer waits are skipped (`passing_time`).

`invariants` has what must hold at any time, and what must hold once nothing is due.
"""

import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from django.conf import settings
from django.db import connection, connections, transaction
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.importing import write
from deliveries_app.importing.source import SourceFile, SourceWatch
from deliveries_app.importing.validate import initial_state
from deliveries_app.models import (
    App,
    AppRepository,
    AppRepositoryQuerySet,
    BulkOperation,
    Delivery,
    DriftCheck,
    DriftState,
    Imported,
    OperationKind,
    PendingRelease,
    Status,
)
from deliveries_app.planning.eligibility import reason_by_path
from deliveries_app.progress import runs
from deliveries_app.scheduling import enqueue_due
from deliveries_app.services import (
    NotCheckable,
    NotFailed,
    NotFound,
    NothingToSend,
    Rollout,
    cancel_check,
    cancel_operation,
    cancel_request,
    check_app,
    check_watch,
    continue_operation,
    delete_app,
    resend_files,
    resend_many,
    resync_by_app,
    resync_many,
    resync_single,
    retry_by_app,
    retry_single,
    send_differences,
    unwatch_repository,
    watch_repository,
)
from deliveries_app.services.app_settings import change_app
from deliveries_app.services.cancel import cancel_sync
from deliveries_app.services.control import (
    current_pause,
    pause_syncing,
    pause_watches,
    reset_circuits,
    resume_syncing,
    resume_watches,
)
from deliveries_app.services.drift import maintain_checks
from deliveries_app.services.keys import KeyRotationError, retire_old_key, start_key_rotation
from deliveries_app.services.rollout import release_due
from deliveries_app.services.tokens import rotate_app_token
from deliveries_app.services.watch_settings import change_watch
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sweep.head_checks import check_due
from deliveries_app.sync.dead_processes import end_dead_leases
from repositories_app.git import remote
from repositories_app.git.exceptions import GitError
from repositories_app.git.url import parse_url
from repositories_app.mirror import cache
from repositories_app.models import HostOutage, Repository
from repositories_app.services import find_or_create, mirror_of
from tests.faults import invariants
from tests.faults.clients import KINDS, ClientKind, Clients
from tests.faults.hosts import FAULTS, GOOD, FaultyGit
from tests.faults.journal import Journal
from tests.faults.passing_time import pass_time, seconds_to_next_event, set_clock_back, set_clock_right
from tests.faults.workers import SIGNALS, Fate, Step, Workers
from tests.support import transforms
from tests.support.git import Changes, Entry, Repo, git
from tests.support.histories import shas, without_ignored
from tests.support.postgres import PostgresServer
from tests.support.processes import children, forked, in_threads, reap
from tests.support.receiver import Answer, Notification
from tests.support.repositories import init
from tests.support.syncing import sync
from tests.support.valkey import ValkeyServer
from tests.support.world import KEY, World

SLOW = (0.05, 0.5)  # seconds; the second exceeds the timeout
LOST = 0.3  # seconds for which the client still processes a request whose connection is lost
ACTOR = Actor.command()
PLACES = ((0, 0), (1, 0), (0, 1))  # app and repository
REFS = ("refs/heads/dev", "refs/tags/v1")  # of each repository, besides its default branch
TRANSFORMS: list[tuple[str, ...]] = [(), ("Shout",), ("DropDrafts",), ("Flatten",), ("Picky",), ("Shout", "Flatten")]
GOOD_PLACE = 1  # the well-behaved side of `bad_neighbour`: the only watch of its app
ATTEMPTS_OF_THE_GOOD = 8
"""Attempts within which a well-behaved app must get everything. It may have to wait out its own backoff first."""
PATIENCE = 7200.0
"""Seconds within which everything is delivered once nothing fails: holds end after an hour at the latest."""


def _rows(watch: AppRepository) -> AppRepositoryQuerySet:
    return AppRepository.objects.filter(pk=watch.pk)


def _is_wrong(base_url: str) -> bool:
    return base_url.rpartition("/")[2].isdigit()


def _with_safe_paths(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if reason_by_path(os.fsencode(path)) is None}


def _full_name(ref: str) -> str:
    return ref if ref.startswith("refs/") else f"refs/{'heads' if ref == 'dev' else 'tags'}/{ref}"


class _World(World):
    """A world whose git host and client apps have faults."""

    def __init__(self, directory: Path) -> None:
        self.git = FaultyGit(directory / "git")
        self.receiver = self.clients = Clients(directory / "copies", {})
        self.receiver.start()


class Universe:
    """The apps, repositories and watches of a history. `events` counts what happened. Call `close` at the end.

    `kinds` are the numbers of the client kinds. With `real_workers`, `settle` also uses real workers.
    """

    def __init__(
        self,
        directory: Path,
        database: PostgresServer | None,
        redis: ValkeyServer,
        kinds: Sequence[int],
        *,
        real_workers: bool,
    ) -> None:
        self._database, self._redis, self._real_workers = database, redis, real_workers
        self._max_file_bytes = settings.MAX_FILE_BYTES
        self.events: Counter[str] = Counter()
        self.journal = Journal()
        self.world = _World(directory)
        self.clients, self.host = self.world.clients, self.world.git.host
        self.keys: dict[str, str] = {}
        self.clients.keys = self.keys
        self.tainted: dict[tuple[str, ClientKind], set[str]] = {}
        self.heads: dict[str, list[str]] = {}
        self.refs: dict[tuple[str, str], list[str]] = {}  # repository and full name → the commits it pointed to
        self.reached: dict[int, int] = {}  # watch → index of the newest head that it has reached
        self.followed: dict[int, str] = {}  # watch → the ref that `reached` refers to
        self.host_lagged = False
        self.slowness = 0.0  # seconds that the clients take for each notification
        self.dropped_at: dict[tuple[str, str], int] = {}
        self.damaged: set[tuple[str, str]] = set()  # app's id and repository: whose copy was edited
        self.ever_damaged: set[tuple[str, str]] = set()
        self.uncounted = 0  # up to this operation, live counts may have been lost with Redis or a process
        self.counted: set[int] = set()  # operations that have ended and were checked
        self.ended_runs: dict[tuple[int, datetime | None], list[object]] = {}  # see `check_ended_runs`
        self._files: dict[str, dict[str, bytes]] = {}
        self._expected: dict[tuple[str, ...], dict[str, str]] = {}
        self.apps = [self._onboard(KINDS[kind]) for kind in kinds]
        self.repos = [self.world.git.repo(f"acme/{name}", {"readme.md": b"# Hello\n"}) for name in ("one", "two")]
        for repo in self.repos:
            repo.force_push({"readme.md": b"# Dev\n"}, "Dev", branch="dev")
            repo.tag("v1", "dev")
            self.world.git.update_replica(repo)
        self._trees: list[tuple[int, Changes]] = []
        self._unfinished: list[tuple[AppRepository, list[SourceFile], Status]] = []  # imports
        for number in range(len(self.repos)):
            self._learn(number)
        for place in range(len(PLACES)):
            self.watch(place)
        self._ours = set(children(os.getpid()))
        self._quiet_at = 0
        self._time_lost = 0.0
        self._lock = threading.Lock()
        self._workers = Workers(self.clients, self.journal, self.events, self.happen)
        self._mood: Callable[[], Answer | float | None] = lambda: None
        self._good_app = ""  # its client behaves whatever the mood
        self.world.answer(self._answer)

    def close(self) -> None:
        self._mood = lambda: None
        transforms.use_transforms(settings)
        settings.MAX_FILE_BYTES = self._max_file_bytes
        set_clock_right()
        self.world.close()

    @property
    def busy(self) -> bool:
        """Whether workers have run since it last settled."""
        return self.events["work"] > self._quiet_at

    def happen(self, step: Step) -> None:
        name, arguments = step
        getattr(self, name)(*arguments)

    def watch_in(self, place: int) -> AppRepository | None:
        """Return the watch in a place, if there is one."""
        app, repo = PLACES[place]
        alive = AppRepository.objects.alive().select_related("app", "repository")
        return alive.filter(app=self.apps[app], repository__name=self.repos[repo].name.partition("/")[2]).first()

    @staticmethod
    def paused_everything() -> bool:
        return current_pause() is not None

    def alive(self) -> list[AppRepository]:
        return list(AppRepository.objects.alive().select_related("app", "repository").order_by("pk"))

    def repo_of(self, watch: AppRepository) -> Repo:
        return next(repo for repo in self.repos if repo.name == str(watch.repository))

    def head_of(self, watch: AppRepository) -> str:
        """Return the commit that the watch follows now, or an empty string if its branch or tag is gone."""
        return self.tip(self.repo_of(watch), watch.ref)

    def heads_of(self, watch: AppRepository) -> list[str]:
        """Return the commits that the watch's ref has named, oldest first."""
        repo = self.repo_of(watch)
        return self.heads[repo.name] if not watch.ref else self.refs[repo.name, _full_name(watch.ref)]

    @staticmethod
    def tip(repo: Repo, ref: str) -> str:
        try:
            if not ref:
                return repo.head
            listed = git(repo.path, "for-each-ref", "--format=%(objectname) %(*objectname)", _full_name(ref))
        except (OSError, CalledProcessError):
            return ""  # the repository is gone, or has no commit
        named = listed.decode().split()
        return named[-1] if named else ""  # for an annotated tag, the commit that it points to

    def files_of(self, repo: Repo, commit: str) -> dict[str, bytes]:
        if commit not in self._files:
            self._files[commit] = repo.files(commit)
        return self._files[commit]

    def files_at_head(self, repo: Repo) -> dict[str, bytes]:
        """Return no files while the repository is gone or has no commit."""
        head = self.tip(repo, "")
        return self.files_of(repo, head) if head else {}

    def expected(self, watch: AppRepository, commit: str) -> dict[str, str]:
        """Return path → SHA-256 of what the watch's app should hold of a commit, under the rules that apply now."""
        patterns = watch.ignore_patterns, watch.include_patterns, watch.exclude_patterns
        rules = commit, *patterns, *settings.FILE_TRANSFORMS, str(settings.MAX_FILE_BYTES)
        if rules not in self._expected:
            files = without_ignored(_with_safe_paths(self.files_of(self.repo_of(watch), commit)), *patterns)
            small = {path: content for path, content in files.items() if len(content) <= settings.MAX_FILE_BYTES}
            self._expected[rules] = shas(transforms.transformed(small))
        return self._expected[rules]

    # --- What happens upstream ---------------------------------------------------------------------------------------

    def push(self, repo: int, changes: Changes) -> None:
        self._note("push")
        self._update_replica(repo)
        self.repos[repo].commit(changes)
        self._learn(repo)

    def force_push(self, repo: int, tree: Changes) -> None:
        self._note("force-push" if tree else "empty tree")
        self._trees.append((repo, tree))
        self._update_replica(repo)
        self.repos[repo].force_push(tree)
        self._learn(repo)

    def push_old_tree(self, number: int) -> None:
        if self._trees:
            self.force_push(*self._trees[number % len(self._trees)])

    def reset_to(self, repo: int, number: int) -> None:
        """Move the default branch back to a commit that it had before."""
        directory, known = self.repos[repo].path, self.heads[self.repos[repo].name]
        commit = known[number % len(known)]
        with suppress(CalledProcessError):  # the repository has been recreated since
            git(directory, "cat-file", "-e", commit)
            self._note("branch reset")
            self._update_replica(repo)
            git(directory, "update-ref", f"refs/heads/{self.repos[repo].branch}", commit)
            self._learn(repo)

    def recreate(
        self, repo: int, object_format: str, tree: Changes, between: str, fates: Sequence[Fate | None]
    ) -> None:
        """Delete the repository at the host and create another one with its name.

        Workers run while it is gone, or while the new one has no commit, if `between` is "gone" or "empty".
        """
        self._note("repository recreated")
        one = self.repos[repo]
        for directory in (one.path, self.host.replica / f"{one.name}.git"):
            shutil.rmtree(directory)
        if between == "gone":
            self.work(range(len(PLACES)), fates)
        init(one.path, "main", object_format)
        shutil.copytree(one.path, self.host.replica / f"{one.name}.git")
        if between == "empty":
            self.work(range(len(PLACES)), fates)
        one.force_push(tree)
        for ref in REFS:
            git(one.path, "update-ref", ref, one.head)
        self.world.git.update_replica(one)
        self._learn(repo)

    def add(self, repo: int, path: str, entry: object) -> None:
        """Add or change a file. It may replace a directory, or its directory may replace a file."""
        if isinstance(entry, Entry) and entry.mode == "160000":
            entry = replace(entry, content=entry.content[: len(self.repos[repo].head)])  # the object format's length
        existing = self.paths(repo)
        in_the_way = {other: None for other in existing if other.startswith(f"{path}/") or path.startswith(f"{other}/")}
        self.push(repo, {**in_the_way, path: entry})  # type: ignore[dict-item]

    def remove(self, repo: int, number: int) -> None:
        existing = self.paths(repo)
        if existing:
            self.push(repo, {existing[number % len(existing)]: None})

    def rename(self, repo: int, number: int, name: str) -> None:
        files = self.files_at_head(self.repos[repo])
        if files:
            old = sorted(files)[number % len(files)]
            rest = [path for path in self.paths(repo) if path != old]
            if not any(path == name or path.startswith(f"{name}/") or name.startswith(f"{path}/") for path in rest):
                self.push(repo, {old: None, name: files[old]} if old != name else {name: files[old] + b"."})

    def rename_to_twin(self, repo: int, number: int, twins: Mapping[str, str]) -> None:
        """Give some files names that differ by case or by Unicode form only."""
        files = self.files_at_head(self.repos[repo])
        names = sorted(path for path in files if path in twins and twins[path] not in files)[number % 2 :]
        if names:
            self._note("renamed to twins")
            changes: Changes = {twins[name]: files[name] for name in names}
            self.push(repo, {**dict.fromkeys(names), **changes})

    def change(self, repo: int) -> None:
        """Change every file, and delete the first one."""
        files = self.files_at_head(self.repos[repo])
        changes: Changes = {path: content + b"+" for path, content in files.items()}
        if files:
            self.push(repo, {**changes, min(files): None})

    def rename_branch(self, repo: int, name: str) -> None:
        if self.repos[repo].branch != name:
            self._note("branch renamed")
            self._update_replica(repo)
            self.repos[repo].rename_branch(name)

    def push_dev(self, repo: int, tree: Changes) -> None:
        """Give the branch dev a new history. With an empty `tree`, move it to the head of the default branch."""
        self._note("other branch pushed" if tree else "other branch merged")
        self._update_replica(repo)
        if tree:
            self.repos[repo].force_push(tree, "Dev", branch="dev")
        else:
            git(self.repos[repo].path, "update-ref", "refs/heads/dev", self.repos[repo].head)
        self._learn(repo)

    def move_tag(self, repo: int, to_dev: bool, annotated: bool) -> None:
        self._note("tag moved")
        target = self.tip(self.repos[repo], "dev" if to_dev else "")
        if target:
            self._update_replica(repo)
            self.repos[repo].tag("v1", target, annotated=annotated)
            self._learn(repo)

    def delete_ref(self, repo: int, number: int) -> None:
        self._note("branch or tag deleted")
        self._update_replica(repo)
        self.repos[repo].delete_ref(REFS[number])

    def restore_refs(self, repo: int) -> None:
        """Restore deleted branches and tags: a watch that follows one could never be up to date."""
        for ref in REFS:
            if not self.tip(self.repos[repo], ref):
                self._update_replica(repo)
                git(self.repos[repo].path, "update-ref", ref, self.repos[repo].head)
                self._learn(repo)

    def paths(self, repo: int) -> list[str]:
        """Return all paths of HEAD in order, including symbolic links."""
        listed = git(self.repos[repo].path, "ls-tree", "-r", "-z", "--name-only", "HEAD")
        return [os.fsdecode(path) for path in listed.split(b"\0") if path]

    # --- What people do ----------------------------------------------------------------------------------------------

    def resync(self, place: int) -> None:
        self._with(place, "re-sync", lambda watch: resync_single(ACTOR, watch))

    def retry(self, place: int) -> None:
        self._with(place, "retry", lambda watch: retry_single(ACTOR, watch))

    def cancel(self, place: int) -> None:
        self._with(place, "cancel", lambda watch: cancel_request(ACTOR, watch))

    def stop(self, place: int) -> None:
        self._with(place, "stop", lambda watch: invariants.check_stop(self, watch, lambda: cancel_sync(ACTOR, watch)))

    def resync_all(self, app: int) -> None:
        self._note("re-sync of all")
        self._unless_gone(lambda: resync_by_app(ACTOR, self.apps[app]))

    def resync_gradually(self, canary: bool, pace: int | None) -> None:
        """Re-sync everything with a canary or a pace."""
        self._note("gradual re-sync")
        rollout = Rollout(canary=canary, pace=pace)
        self._unless_gone(lambda: resync_many(ACTOR, AppRepository.objects.all(), rollout=rollout))

    def hold_resync(self, seed: int) -> None:
        """Re-sync everything with a canary while the clients refuse everything, until the operation is held."""
        self.resync_gradually(canary=True, pace=None)
        operation = BulkOperation.objects.filter(app=None, ended_at=None).last()
        self.mood(seed, 1.0, is_busy=False)
        for _ in range(8 if operation else 0):
            self.work(range(len(PLACES)), [None] * len(PLACES))
            self.find(everything=False)
            operation.refresh_from_db()
            if operation.held_at or operation.ended_at:
                break
        self.mood(0, 0.0)

    def cancel_gradual(self) -> None:
        """Cancel a gradual re-sync, whatever its state. Watches that it has not released must be unchanged."""
        operation = BulkOperation.objects.filter(app=None, ended_at=None).last()
        if operation:
            self._note("cancel of a held operation" if operation.held_at else "cancel of a gradual operation")
            invariants.check_untouched(operation, lambda: cancel_operation(ACTOR, operation))

    def continue_gradual(self) -> None:
        """Continue a re-sync that is held."""
        for operation in BulkOperation.objects.filter(ended_at=None, held_at__isnull=False):
            self._note("held operation continued")
            continue_operation(ACTOR, operation)

    def release_and_die(self, statement: int) -> None:
        """Let canaries end, then kill the sweep at this SQL statement of the release that follows."""
        self.work(range(len(PLACES)), [None] * len(PLACES))
        self._die_in(release_due, "sweep killed at a release", statement)

    def cancel_and_die(self, statement: int) -> None:
        """Kill a process at this SQL statement while it cancels a gradual re-sync."""
        operation = BulkOperation.objects.filter(app=None, ended_at=None).last()
        if operation:
            self._die_in(lambda: cancel_operation(ACTOR, operation), "killed at a cancel", statement)

    def _die_in(self, act: Callable[[], object], event: str, statement: int) -> None:
        left = iter(range(statement, 0, -1))

        def count(execute: Callable[..., object], *arguments: object) -> object:
            if next(left, 0) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return execute(*arguments)

        def work() -> None:
            with connection.execute_wrapper(count):
                act()

        if os.WIFSIGNALED(reap(forked(work))):
            self._note(event)
            self._lose_counts()

    def retry_all(self, app: int) -> None:
        self._note("retry of all")
        self._unless_gone(lambda: retry_by_app(ACTOR, self.apps[app]))

    def cancel_all(self, app: int) -> None:
        self._note("cancel of an operation")
        operation = BulkOperation.objects.filter(app=self.apps[app], ended_at=None).last()
        if operation:
            cancel_operation(ACTOR, operation)

    def resend(self, place: int, seed: int) -> None:
        self._with(place, "resend", lambda watch: resend_files(ACTOR, watch, self._chosen_files(seed, [watch], "path")))

    def resend_many(self, seed: int) -> None:
        self._note("resend of many")
        self._unless_gone(lambda: resend_many(ACTOR, self._chosen_files(seed, self.alive(), "pk")))

    def cancel_resend(self) -> None:
        self._note("cancel of a resend")
        operation = BulkOperation.objects.filter(kind=OperationKind.RESEND, ended_at=None).last()
        if operation:
            cancel_operation(ACTOR, operation)

    @staticmethod
    def _chosen_files(seed: int, watches: Sequence[AppRepository], column: str) -> list[Any]:
        """Return this column of about half of the delivery records of these watches."""
        rng = random.Random(seed)
        rows = Delivery.objects.filter(watch__in=watches).order_by("watch", "path").values_list(column, flat=True)
        return [value for value in rows if rng.random() < 0.5]

    def check_drift(self, place: int) -> None:
        self._with(place, "check for differences", lambda watch: check_watch(ACTOR, watch))

    def check_all(self, app: int) -> None:
        self._note("check of all")
        self._unless_gone(lambda: check_app(ACTOR, self.apps[app]))

    def cancel_check(self, place: int) -> None:
        """Cancel the check that is under way, or else a new one before it begins."""
        if (check := self._newest_check(place)) is None or not check.is_open:
            self.check_drift(place)
            check = self._newest_check(place)
        if check is not None and check.is_open:
            self._note("check cancelled")
            cancel_check(ACTOR, check)

    def send_differences(self, place: int) -> None:
        """Send what the newest check has found, however old it is."""
        if (check := self._newest_check(place)) is not None and check.can_send:
            self._note("differences sent")
            self._unless_gone(lambda: send_differences(ACTOR, check))

    def _newest_check(self, place: int) -> DriftCheck | None:
        watch = self.watch_in(place)
        checks = DriftCheck.objects.filter(watch=watch).select_related("watch__app", "watch__repository")
        return checks.order_by("-pk").first()

    def answer_checks(self, app: int, wanted: bool) -> None:
        self._change_app(app, "checks wanted" if wanted else "checks not wanted", answers_verify=wanted)

    def ignore(self, place: int, patterns: str) -> None:
        self._with(place, "ignore rules", lambda watch: change_watch(ACTOR, watch, ignore_patterns=patterns))

    def choose(self, place: int, include: str, exclude: str) -> None:
        self._with(
            place,
            "app's patterns",
            lambda watch: change_watch(ACTOR, watch, include_patterns=include, exclude_patterns=exclude),
        )

    def follow(self, place: int, ref: str) -> None:
        self._with(place, "other ref followed", lambda watch: change_watch(ACTOR, watch, ref=ref))

    def at_once(self, one: Step, other: Step) -> None:
        """Let two people do these at the same time."""
        self._note("two at once")
        in_threads(partial(self.happen, one), partial(self.happen, other))

    def replace_token(self, place: int, token: str) -> None:
        self._with(place, "repository token replaced", lambda watch: change_watch(ACTOR, watch, github_token=token))

    def pause(self, app: int) -> None:
        self._change_app(app, "app paused", paused=True)

    def resume(self, app: int) -> None:
        self._change_app(app, "app resumed", paused=False)

    def pause_one(self, place: int) -> None:
        self._with(place, "repository paused", lambda watch: pause_watches(ACTOR, _rows(watch)))

    def resume_one(self, place: int) -> None:
        self._with(place, "repository resumed", lambda watch: resume_watches(ACTOR, _rows(watch)))

    def pause_everything(self) -> None:
        self._note("all paused")
        pause_syncing(ACTOR)

    def resume_everything(self) -> None:
        self._note("all resumed")
        resume_syncing(ACTOR)

    def limit(self, app: int, max_in_flight: int) -> None:
        self._change_app(app, "max_in_flight changed", max_in_flight=max_in_flight)

    def move_endpoint(self, app: int, address: str) -> None:
        """Change the base URL: to another path of the same client, or, with a status as path, to a wrong server."""
        event = "wrong base URL" if _is_wrong(address) else "base URL changed"
        self._change_app(app, event, base_url=f"{self.clients.url}{address}")

    def limit_size(self, max_file_bytes: int) -> None:
        """Switch to another `MAX_FILE_BYTES`, as if all processes were restarted."""
        self._note("MAX_FILE_BYTES changed")
        settings.MAX_FILE_BYTES = max_file_bytes

    def set_quota(self, app: int, files: int) -> None:
        self._change_app(app, "quota of files" if files else "no quota", max_files=files or None)

    def announce(self, app: int, wanted: bool) -> None:
        self._change_app(
            app, "sync_completed wanted" if wanted else "sync_completed not wanted", send_sync_completed=wanted
        )

    def reset_circuit(self, repo: int) -> None:
        self._note("circuit reset")
        for repository in Repository.objects.filter(name=self.repos[repo].name.partition("/")[2]):
            reset_circuits(ACTOR, [repository])

    def rotate_token(self, app: int) -> None:
        self._note("app token rotated")
        rotate_app_token(ACTOR, self.apps[app])

    def rotate_key(self, app: int) -> None:
        """Take the next step of a key rotation: start it, let the client change its key, or retire the old key."""
        row = App.objects.get(pk=self.apps[app].pk)
        try:
            if not row.is_rotating_key:
                self._note("key rotation begun")
                self.journal.rotating.add(row.app_id)
                start_key_rotation(ACTOR, row)
            elif self.keys[row.app_id] != row.new_auth_key:
                self._note("client changed its key")
                self.keys[row.app_id] = row.new_auth_key
            else:
                retire_old_key(ACTOR, row)
                self._note("key rotation ended")
        except KeyRotationError:
            pass  # the client has not accepted the new key yet

    def transform(self, number: int) -> None:
        """Switch to other transforms, as if all processes were restarted."""
        self._note("transforms switched")
        transforms.use_transforms(settings, *TRANSFORMS[number])

    def evict_mirrors(self) -> None:
        """Remove all unused mirrors, as a machine that is low on disk space does."""
        self._note("mirrors evicted")
        folder = Path(settings.REPOS_DIR)
        before, settings.REPOS_MAX_BYTES = settings.REPOS_MAX_BYTES, 1
        with suppress(FileNotFoundError):
            (folder / "mirrors.json").unlink()
        cache.maintain()
        settings.REPOS_MAX_BYTES = before

    def unwatch(self, place: int, drops: bool) -> None:
        """End a watch. The client drops its copy or keeps it, independently of which records Docora removes."""
        if (watch := self.watch_in(place)) is not None:
            self._note("unwatched, copy dropped" if drops else "unwatched, copy kept")
            unwatch_repository(ACTOR, watch)
            if drops:
                self.clients.drop(watch)
                watch.refresh_from_db()
                self.dropped_at[watch.app.app_id, str(watch.repository)] = watch.sequence_high

    def watch(self, place: int) -> None:
        """Watch again. If the watch gets a new id, a client that cannot tell by the epoch begins with an empty copy.

        Docora may then lack records of the old copy: they were removed, or an import of them was interrupted. With real
        workers, such a client always begins with an empty copy, because the sweep may remove the old watch at any moment.
        """
        app, repo = PLACES[place]
        if self.watch_in(place) is None:
            self._note("watched")
            app_id, name = self.apps[app].app_id, self.repos[repo].name
            rows = AppRepository.objects.filter(app=self.apps[app], repository__name=name.partition("/")[2])
            keeps_id = rows.filter(arriving=False).exists()
            memory = self.clients.memory(app_id, name)
            if not memory.knows_epoch and (self._real_workers or not keeps_id):
                memory.drop()
            with suppress(GitError):
                watch_repository(ACTOR, self.apps[app], self.repos[repo].url)

    def watch_again(self, place: int, drops: bool) -> None:
        self.unwatch(place, drops)
        self.watch(place)

    def replace_app(self, app: int, kind: int) -> None:
        """Delete an app and register another, which watches the same repositories."""
        self._note("app deleted")
        delete_app(ACTOR, self.apps[app])
        self.apps[app] = self._onboard(KINDS[kind])
        for place, (number, _) in enumerate(PLACES):
            if number == app:
                self.watch(place)

    def import_app(self, app: int, kind: int, seed: int, is_complete: bool) -> None:
        """Delete an app and import another from the existing service, with the files that the service has delivered.

        Unless `is_complete`, the import is interrupted, and continues once everything settles.
        """
        self._note("app imported")
        delete_app(ACTOR, self.apps[app])
        if KINDS[kind].is_reference:
            kind += 1  # its copy cannot be given files that did not come from Docora
        self.apps[app] = self._onboard(KINDS[kind])
        Imported.objects.create(app_id=self.apps[app].app_id)
        rng = random.Random(seed)
        for place, (number, repo) in enumerate(PLACES):
            if number == app:
                commit = rng.choice(self.heads[self.repos[repo].name])
                files = _with_safe_paths(self.files_of(self.repos[repo], commit))
                if any(self._twins_in(files, KINDS[kind])):
                    files = {}
                held = {path: sha for path, sha in shas(files).items() if rng.random() < 0.8}
                self._import_watch(place, held, rng.choice(list(Status)), is_complete)

    def _import_watch(self, place: int, held: Mapping[str, str], status: Status, is_complete: bool) -> None:
        app, repo = PLACES[place]
        url = parse_url(self.repos[repo].url)
        with transaction.atomic():
            repository = find_or_create(url, is_private=False)
        row = write.begin_watch(self.apps[app], repository, url.spelled, "")
        self.clients.memory(self.apps[app].app_id, self.repos[repo].name).hold(held)
        files = [SourceFile(path, sha, None) for path, sha in sorted(held.items())]
        write.write_records(row, files if is_complete else files[::2])
        self._unfinished.append((row, files, status))
        if is_complete:
            self.finish_imports()

    def finish_imports(self) -> None:
        unfinished, self._unfinished = self._unfinished, []
        for row, files, status in unfinished:
            write.write_records(row, files)
            source = SourceWatch(None, None, "", "", "", status, "It failed.", None, None)
            state = initial_state(source, lambda _: None)
            write.complete_watch(ACTOR, row, source, state, "", has_records=bool(files))

    def damage(self, place: int, seed: int) -> None:
        """Edit the client's copy. Only a check for differences finds that."""
        watch = self.watch_in(place)
        if watch is None or not self.clients.kind_of(watch.app.app_id).verifies:
            return
        self._note("copy damaged")
        self.damaged.add((watch.app.app_id, str(watch.repository)))
        self.ever_damaged |= self.damaged
        self.clients.damage(watch, random.Random(seed))

    # --- What breaks -------------------------------------------------------------------------------------------------

    def redis_forgets(self) -> None:
        self._note("Redis flushed")
        self._lose_counts()
        with self._redis.client() as client:
            client.flushall()

    def redis_restarts(self) -> None:
        self._note("Redis restarted")
        self._lose_counts()
        self._redis.restart()

    def database_restarts(self) -> None:
        if self._database is not None:
            self._note("database restarted")
            connections.close_all()
            self._workers.may_fail = True  # a worker that loses its database exits, and its job is found again
            self._database.restart()

    def cut_connections(self) -> None:
        """End all connections to the database except this one."""
        if connection.vendor == "postgresql":
            self._note("connections cut")
            self._workers.may_fail = True
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

    def clock_goes_back(self) -> None:
        self._note("clock set back")
        set_clock_back(3600.0)
        self._time_lost += 3600.0

    def time_passes(self, seconds: float) -> None:
        self._note("time passed")
        self._pass(seconds)

    def lose_mirror(self, repo: int) -> None:
        self._note("mirror deleted")
        if mirror := self._mirror(repo):
            shutil.rmtree(mirror, ignore_errors=True)

    def damage_mirror(self, repo: int, seed: int) -> None:
        """Truncate some of its files, as a power cut does."""
        self._note("mirror truncated")
        rng = random.Random(seed)
        mirror = self._mirror(repo)
        for path in sorted(mirror.rglob("*")) if mirror else ():
            if path.is_file() and rng.random() < 0.3:
                path.chmod(0o600)
                os.truncate(path, path.stat().st_size // 2)

    def mood(self, seed: int, share: float, *, is_busy: bool = True) -> None:
        """From now on, let the clients misbehave for this share of their notifications. 0 makes them good clients.

        Unless `is_busy`, they never ask Docora to slow down.
        """
        self._note("mood" if share else "good clients")
        rng = random.Random(seed)
        fates: list[Answer | float] = [
            Answer(500), Answer(500, process=True), Answer(400), Answer(404), Answer(410),
            Answer(close=True), Answer(close=True, process=True), LOST, *SLOW,
        ]  # fmt: skip
        if is_busy:
            fates += [Answer(503), *(Answer(429, headers={"Retry-After": seconds}) for seconds in "01")]
        self._mood = lambda: rng.choice(fates) if rng.random() < share else None

    def host_behaves(self, number: int, seed: int) -> None:
        """Give the git host this fault from now on, or none."""
        fault = (GOOD, *FAULTS)[number]
        self._note(f"host {fault.name}")
        self.host_lagged = self.host_lagged or fault.lags
        self.host.behave(fault, seed)

    # --- Workers -----------------------------------------------------------------------------------------------------

    def work(self, places: Iterable[int], fates: Sequence[Fate | None]) -> None:
        """Run workers for these watches at the same time, each with its fate, once they are due."""
        due = self._due_among(places)
        if due:
            self._note("work")
            self._work(list(zip(due, fates, strict=False)))

    def work_at_much(self, place: int, fates: Sequence[Fate | None], tree: Changes) -> None:
        """Run workers that have files to send, so that the fates take effect."""
        self.force_push(PLACES[place][1], tree)
        self.watch(place)
        self.resync(place)
        self.work([place, *range(len(PLACES))][:2], fates)

    def work_at_check(self, place: int, seed: int, fates: Sequence[Fate | None]) -> None:
        """Run a worker for a check of a damaged copy once nothing else is due, and one for what it found, each with a fate.

        Without a fate, the check is cancelled before a worker begins it.
        """
        checking, sending = fates
        self.watch(place)
        self.work([place], [None])
        self.damage(place, seed)
        self.check_drift(place)
        if checking is None:
            self.cancel_check(place)
        self.work([place], [checking])
        self.work([place], [None])
        self.send_differences(place)
        self.work([place], [sending])

    def work_for_real(self, fate: Fate | None) -> None:
        """Let two real workers do what is due. The first one has a fate."""
        if self._due_among(range(len(PLACES))):
            self._note("real workers")
            self._note("work")
            self._work([(None, fate), (None, None)])

    def bad_neighbour(self, seed: int, fates: Sequence[Fate | None], tree: Changes) -> None:
        """The client of one app misbehaves, and its workers die. Meanwhile the other app must get the same repository."""
        self._note("bad neighbour")
        self.make_peace(GOOD_PLACE)
        self.force_push(0, tree)
        good = self.apps[PLACES[GOOD_PLACE][0]]
        self._good_app = good.app_id
        self.mood(seed, 0.3)
        fates = [replace(fate, step=None) if fate and fate.kind in SIGNALS else None for fate in fates]
        patience = PATIENCE
        for _ in range(ATTEMPTS_OF_THE_GOOD):
            patience -= self._wait_until_due(GOOD_PLACE, patience)
            self.work([GOOD_PLACE, 0, 2], [None, *fates])
            watch = self.watch_in(GOOD_PLACE)
            assert watch is not None
            if (watch.status, watch.last_commit) == (Status.SYNCED, self.head_of(watch)):
                break
        else:
            raise AssertionError(f"another app blocks this one: {watch.status}, {watch.last_error}")
        invariants.check_copy(self, watch)
        self._good_app = ""
        self.mood(0, 0.0)

    def find(self, *, everything: bool = True) -> None:
        """Do one round of the sweep, and check what must hold after it."""
        self.sweep(everything=everything)
        invariants.check_after_sweep(self, has_checked_all=everything)

    def sweep(self, *, everything: bool = False) -> None:
        """Do one round of the sweep. With `everything`, also check watches that are not due, as push hooks would."""
        end_dead_leases()
        maintain_checks()
        release_due()
        if everything:
            self.world.check()
        else:
            with remote.new_client() as client:
                check_due(client)
        runs.close_abandoned_operations()
        remove_ended()
        enqueue_due()

    def check(self) -> None:
        """Check what must hold at any time."""
        invariants.check_always(self)

    # --- The promise -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything that is due be done without faults. Then the promise must hold."""
        self._note("quiet")
        self._quiet_at = self.events["work"]
        self.mood(0, 0.0)
        for place in range(len(PLACES)):
            self.make_peace(place)
        self._do_everything(PATIENCE + self._time_lost)
        self._time_lost = 0.0
        self._repair()
        invariants.check_at_rest(self)
        assert set(children(os.getpid())) <= self._ours | self._servers(), "a process was left behind"

    def _repair(self) -> None:
        """Find what was edited in the copies, and send it."""
        for watch in self.alive():
            if (watch.app.app_id, str(watch.repository)) not in self.damaged:
                continue
            self._change_app(PLACES[self._place_of(watch)][0], "checks wanted", answers_verify=True)
            watch.app.refresh_from_db()
            self._repair_copy(watch)
        self.damaged.clear()

    def _repair_copy(self, watch: AppRepository) -> None:
        """Check and send until the copy is equal, at most six times.

        A client that cannot keep two names apart stays different. `check_copy` ignores these names and compares the others.
        """
        for _ in range(6):
            check = check_watch(ACTOR, watch)
            self._do_everything(PATIENCE)
            check.refresh_from_db()
            assert check.state in {DriftState.EQUAL, DriftState.DIFFERS}, f"{check}: {check.message}"
            if check.state == DriftState.EQUAL:
                return
            self._note("differences sent at the end")
            with suppress(NothingToSend):
                send_differences(ACTOR, check)
            self._do_everything(PATIENCE)

    def _place_of(self, watch: AppRepository) -> int:
        return next(place for place in range(len(PLACES)) if self.watch_in(place) == watch)

    def _do_everything(self, patience: float) -> None:
        """Do all that is due, now and later."""
        for attempt in range(80):
            self.find(everything=attempt == 0)
            self.continue_gradual()
            if self._do_what_is_due():
                continue
            is_idle = not (
                HostOutage.objects.exists()
                or DriftCheck.objects.open().exists()
                or PendingRelease.objects.exists()
                or AppRepository.objects.filter(ended_at__isnull=False).exists()
            )
            if is_idle and all(invariants.is_at_rest(watch) for watch in self.alive()):
                break
            seconds = seconds_to_next_event()
            if seconds is None and (self._due() or HostOutage.objects.filter(retry_at__lte=Now()).exists()):
                continue  # it became due a moment ago
            if seconds is None or seconds > patience:
                raise AssertionError(f"not done within {PATIENCE} seconds, next in {seconds}: {self.describe()}")
            patience -= seconds
            self._pass(seconds)
        else:
            raise AssertionError(f"something is still due: {self.describe()}")

    def make_peace(self, place: int) -> None:
        """Undo everything by which people or the git host hold a watch back."""
        self.host_behaves(0, 0)
        self.resume_everything()
        self.finish_imports()
        self.continue_gradual()
        self.restore_refs(PLACES[place][1])
        if "Picky" in str(settings.FILE_TRANSFORMS):
            self.transform(0)
        app = PLACES[place][0]
        if _is_wrong(App.objects.get(pk=self.apps[app].pk).base_url):
            self.move_endpoint(app, "")
        row = App.objects.get(pk=self.apps[app].pk)
        if row.paused:
            self.resume(app)
        if row.max_files is not None:
            self.set_quota(app, 0)
        if (watch := self.watch_in(place)) and watch.is_paused:
            self.resume_one(place)
        if row.is_rotating_key:
            self.keys[row.app_id] = row.new_auth_key
        if place == GOOD_PLACE:
            self.watch(place)

    def _do_what_is_due(self) -> bool:
        """Perform what is due. Return False if nothing is."""
        due = [watch.pk for watch in self._due()]
        if due and self._real_workers:
            self._work([(None, None)])
        elif due:
            for pk in due:
                self.journal.begin(self.clients.log)
                sync(pk)
            self._workers.let_the_clients_finish()
        return bool(due)

    def _work(self, fates: Sequence[tuple[AppRepository | None, Fate | None]]) -> None:
        connections.close_all()
        self._workers.work(fates)
        if any(fate for _, fate in fates):
            self._lose_counts()

    def _due_among(self, places: Iterable[int]) -> list[AppRepository]:
        """Return the watches in these places that are due, after letting time pass until one is."""
        wanted = list(dict.fromkeys(places))
        self.find()
        for _ in range(3):
            due = {watch.pk: watch for watch in self._due()}
            chosen = [due[watch.pk] for place in wanted if (watch := self.watch_in(place)) and watch.pk in due]
            if chosen:
                return chosen
            seconds = seconds_to_next_event()
            if seconds is None or seconds > PATIENCE:
                break
            self._pass(seconds)
            self.find(everything=False)
        return []

    def _wait_until_due(self, place: int, patience: float) -> float:
        """Let time pass until the watch in this place is due or at rest. Return the seconds."""
        passed = 0.0
        self.find()
        while passed < patience:
            watch = self.watch_in(place)
            assert watch is not None
            if invariants.is_at_rest(watch) or any(due.pk == watch.pk for due in self._due()):
                break
            seconds = seconds_to_next_event() or patience
            passed += seconds
            self._pass(seconds)
            self.find(everything=False)
        return passed

    def _due(self) -> list[AppRepository]:
        due = AppRepository.objects.due().free().startable().select_related("app", "repository")
        return list(due.order_by("next_sync_at", "pk"))

    def describe(self) -> list[str]:
        """Say what holds back each watch that is not at rest at HEAD, and which have ended but still have rows."""
        heads = {watch: self.head_of(watch) for watch in self.alive()}
        return [
            f"{watch} is {watch.status} at {watch.last_commit} of {head}, due at {watch.next_sync_at}, leased until"
            f" {watch.lease_until}, arriving: {watch.arriving}, paused: {watch.app.paused} {watch.is_paused}, held until"
            f" {watch.app.cooldown_until}, down: {watch.app.down_count}, {watch.last_error}"
            for watch, head in heads.items()
            if not invariants.is_at_rest(watch) or watch.last_commit != head
        ] + [f"{watch} has ended" for watch in AppRepository.objects.filter(ended_at__isnull=False)]

    def _answer(self, note: Notification) -> Answer | None:
        """Runs in the clients' threads."""
        time.sleep(self.slowness)
        answer = self._workers.apply_fate(note)
        if answer is not None:
            return answer
        with self._lock:
            mood = self._mood() if note.app_id != self._good_app else None
        if mood == LOST:
            self.clients.lose_connection()
            time.sleep(LOST)
            return Answer(close=True, process=True)
        if isinstance(mood, float):
            time.sleep(mood)
            return None
        if mood and note.kind == "delete" and mood.status in {404, 410}:
            return Answer(500)  # 404 and 410 would claim that it does not have the file
        return mood or self.clients.refusal(note)

    def _servers(self) -> set[int]:
        servers = (self._database, self._redis)
        return {server.pid for server in servers if server is not None and server.pid is not None}

    def _onboard(self, kind: ClientKind) -> App:
        self._note(f"client: {kind.name}")
        app = self.world.add_app("Portal", answers_verify=True)
        self.clients.kinds[app.app_id] = kind
        self.keys[app.app_id] = KEY
        return app

    def _change_app(self, app: int, event: str, **changes: object) -> None:
        self._note(event)
        row = App.objects.get(pk=self.apps[app].pk)
        for name, value in changes.items():
            setattr(row, name, value)
        change_app(ACTOR, row, changes)

    def _with(self, place: int, event: str, act: Callable[[AppRepository], object]) -> None:
        watch = self.watch_in(place)
        if watch is None:
            self._note("not watched")
        else:
            self._note(event)
            self._unless_gone(lambda: act(watch))

    def _unless_gone(self, act: Callable[[], object]) -> None:
        try:
            with transaction.atomic():
                act()
        except (NotFound, NotFailed, NotCheckable, NothingToSend):
            self._note("too late")
        except GitError:
            self._note("host did not answer")

    def _pass(self, seconds: float) -> None:
        with self._redis.client() as client:
            pass_time(seconds, client)

    def _learn(self, repo: int) -> None:
        """Note the current trees: their contents, and names that some file systems cannot keep apart."""
        name, head = self.repos[repo].name, self.repos[repo].head
        self.heads.setdefault(name, []).append(head)
        commits = {head}
        for ref in REFS:
            known, commit = self.refs.setdefault((name, ref), []), self.tip(self.repos[repo], ref)
            if commit and commit not in known[-1:]:
                known.append(commit)
                commits.add(commit)
        for commit in commits:
            self._learn_tree(name, self.files_of(self.repos[repo], commit))

    def _learn_tree(self, name: str, files: Mapping[str, bytes]) -> None:
        self.journal.learn(name, shas(files).values())
        self.journal.learn(name, shas({path: content.upper() for path, content in files.items()}).values())
        for kind in KINDS:
            self.tainted.setdefault((name, kind), set()).update(self._twins_in(files, kind))

    @staticmethod
    def _twins_in(files: Iterable[str], kind: ClientKind) -> set[str]:
        """Return the keys that several files of the tree, or of its flattened form, share at a client of this kind."""
        names = {*files, *(f"flat/{path.rpartition('/')[2]}" for path in files)}
        counts = Counter(map(kind.fold, names))
        return {key for key, count in counts.items() if count > 1}

    def _update_replica(self, repo: int) -> None:
        """Update the host's replica before a push. While the host lags, leave the replica as it is."""
        if not self.host.fault.lags:
            self.world.git.update_replica(self.repos[repo])

    def _lose_counts(self) -> None:
        newest = BulkOperation.objects.order_by("pk").last()
        self.uncounted = newest.pk if newest else 0

    def _mirror(self, repo: int) -> Path | None:
        repository = Repository.objects.filter(name=self.repos[repo].name.partition("/")[2]).first()
        return mirror_of(repository).directory if repository else None

    def _note(self, event: str) -> None:
        self.events[event] += 1
