"""Everything that can happen to Docora, one method each, and the promise that must hold once nothing is due.

Two apps on one client server, two repositories, three watches: acme/one for both apps, acme/two for the first. The
components are real: git and its server, the database, Redis, sockets, and worker processes that are really killed. Only
the waiting times are short: request timeouts, holds and backoffs.
"""

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from django.db import connections, transaction
from django.db.models import F

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, Status, SyncRun
from deliveries_app.progress import runs
from deliveries_app.scheduling import enqueue_due
from deliveries_app.services import (
    NotFailed,
    NotFound,
    cancel_operation,
    cancel_request,
    resync_by_app,
    resync_single,
    retry_by_app,
    retry_single,
    unwatch_repository,
    watch_repository,
)
from deliveries_app.services.keys import KeyRotationError, retire_old_key, start_key_rotation
from deliveries_app.services.tokens import rotate_app_token
from deliveries_app.services.watch_settings import set_ignore_patterns
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sync.attempt import sync
from repositories_app.services import mirror_of
from tests.faults.journal import Journal
from tests.faults.workers import SIGNALS, Fate, Workers
from tests.support.git import Changes, Repo, git
from tests.support.histories import shas, without_ignored
from tests.support.postgres import PostgresServer
from tests.support.processes import children
from tests.support.receiver import Answer, Notification
from tests.support.valkey import ValkeyServer
from tests.support.world import KEY, World

SLOW = (0.05, 0.5)  # seconds; the second exceeds the timeout
ACTOR = Actor.command()


ATTEMPTS_OF_THE_GOOD = 8
"""Attempts within which a well-behaved app must get everything. It may have to wait for its own earlier failures."""


class Universe:
    """The apps, repositories and watches of a history. `events` counts what happened. Call `close` at the end."""

    def __init__(self, directory: Path, database: PostgresServer | None, redis: ValkeyServer) -> None:
        self._database, self._redis = database, redis
        self.events: Counter[str] = Counter()
        self.journal = Journal()
        self.world = World(directory)
        self.keys = {self.world.app.app_id: KEY}
        self.apps = [self.world.app, self.world.add_app("Search")]
        self.keys[self.apps[1].app_id] = KEY
        self.world.receiver.keys = self.keys
        self.repos = [self.world.git.repo(f"acme/{name}", {"readme.md": b"# Hello\n"}) for name in ("one", "two")]
        for number in range(len(self.repos)):
            self._learn(number)
        self.watches: list[AppRepository] = []
        for app, repo in ((0, 0), (1, 0), (0, 1)):
            self.watches.append(watch_repository(ACTOR, self.apps[app], self.repos[repo].url).watch)
        self._repo_of = {self.watches[0].pk: 0, self.watches[1].pk: 0, self.watches[2].pk: 1}
        self._ours = set(children(os.getpid()))
        self._quiet_at = 0
        self._lock = threading.Lock()
        self._workers = Workers(self.world, self.journal, self.events, self.happen)
        self._mood: Callable[[], Answer | float | None] = lambda: None
        self._good_app = ""  # its client behaves whatever the mood
        self.world.answer(self._answer)

    def close(self) -> None:
        self._mood = lambda: None
        self.world.close()

    @property
    def busy(self) -> bool:
        """Whether workers have run since it last settled."""
        return self.events["work"] > self._quiet_at

    def repo_of(self, number: int) -> int:
        """Return the number of the watch's repository."""
        return self._repo_of[self.watches[number].pk]

    def happen(self, what: str) -> None:
        """Call a method of this class: its name, followed by a number if it takes one."""
        name, _, argument = what.partition(" ")
        getattr(self, name)(*([int(argument)] if argument else []))

    # --- What happens upstream ---------------------------------------------------------------------------------------

    def push(self, repo: int, changes: Changes) -> None:
        self._note("push")
        self.repos[repo].commit(changes)
        self._learn(repo)

    def force_push(self, repo: int, tree: Changes) -> None:
        self._note("force-push" if tree else "empty tree")
        self.repos[repo].force_push(tree)
        self._learn(repo)

    def change(self, repo: int) -> None:
        """Change every file, and delete the first one."""
        files = self.repos[repo].files()
        changes: Changes = {path: content + b"+" for path, content in files.items()}
        if files:
            self.push(repo, changes | {min(files): None})

    def rename_branch(self, repo: int, name: str) -> None:
        if self.repos[repo].branch != name:
            self._note("branch renamed")
            self.repos[repo].rename_branch(name)

    def paths(self, repo: int) -> list[str]:
        """Return all paths of HEAD in order, including symbolic links."""
        listed = git(self.repos[repo].path, "ls-tree", "-r", "-z", "--name-only", "HEAD")
        return [os.fsdecode(path) for path in listed.split(b"\0") if path]

    # --- What people do ----------------------------------------------------------------------------------------------

    def resync(self, number: int) -> None:
        self._note("re-sync")
        self._unless_gone(lambda: resync_single(ACTOR, self.watches[number]))

    def resync_all(self, app: int) -> None:
        self._note("re-sync of all")
        self._unless_gone(lambda: resync_by_app(ACTOR, self.apps[app]))

    def retry(self, number: int) -> None:
        self._note("retry")
        self._unless_gone(lambda: retry_single(ACTOR, self.watches[number]))

    def retry_all(self, app: int) -> None:
        self._note("retry of all")
        self._unless_gone(lambda: retry_by_app(ACTOR, self.apps[app]))

    def cancel(self, number: int) -> None:
        self._note("cancel")
        self._unless_gone(lambda: cancel_request(ACTOR, self.watches[number]))

    def cancel_all(self, app: int) -> None:
        self._note("cancel of an operation")
        operation = BulkOperation.objects.filter(app=self.apps[app], ended_at=None).last()
        if operation:
            cancel_operation(ACTOR, operation)

    def ignore(self, number: int, patterns: str) -> None:
        self._note("ignore rules")
        self._unless_gone(lambda: set_ignore_patterns(ACTOR, self.watches[number], patterns))

    def rotate_token(self, app: int) -> None:
        self._note("token rotated")
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

    def unwatch_and_watch(self, number: int) -> None:
        self._watch_again(number, removed=False)

    def remove_and_watch(self, number: int) -> None:
        """Watch it again after its rows were removed. The client keeps its copy, and finds out by the new watch id."""
        self._watch_again(number, removed=True)

    def _watch_again(self, number: int, *, removed: bool) -> None:
        self._note("removed and watched again" if removed else "unwatched and watched again")
        watch = AppRepository.objects.get(pk=self.watches[number].pk)
        repo = self._repo_of.pop(watch.pk)
        unwatch_repository(ACTOR, watch)
        if removed:
            remove_ended()
        self.watches[number] = watch_repository(ACTOR, watch.app, self.repos[repo].url).watch
        self._repo_of[self.watches[number].pk] = repo

    # --- What breaks -------------------------------------------------------------------------------------------------

    def redis_forgets(self) -> None:
        self._note("Redis flushed")
        with self._redis.client() as client:
            client.flushall()

    def redis_restarts(self) -> None:
        self._note("Redis restarted")
        self._redis.restart()

    def database_restarts(self) -> None:
        if self._database is not None:
            self._note("database restarted")
            connections.close_all()
            self._workers.may_fail = True  # a worker that loses its database exits, and its job is found again
            self._database.restart()

    def lose_mirror(self, repo: int) -> None:
        self._note("mirror deleted")
        shutil.rmtree(self._mirror(repo), ignore_errors=True)

    def damage_mirror(self, repo: int, seed: int) -> None:
        """Truncate some of its files, as a power cut does."""
        self._note("mirror truncated")
        rng = random.Random(seed)
        for path in sorted(self._mirror(repo).rglob("*")):
            if path.is_file() and rng.random() < 0.3:
                path.chmod(0o600)
                os.truncate(path, path.stat().st_size // 2)

    def mood(self, seed: int, share: float) -> None:
        """Let the client misbehave for this share of its notifications from now on. 0 makes it a good client."""
        self._note("mood" if share else "good client")
        rng = random.Random(seed)
        fates: list[Answer | float] = [
            Answer(500), Answer(500, process=True), Answer(400), Answer(404), Answer(410), Answer(503),
            Answer(429, headers={"Retry-After": "0"}), Answer(429, headers={"Retry-After": "1"}),
            Answer(close=True), Answer(close=True, process=True), *SLOW,
        ]  # fmt: skip
        self._mood = lambda: rng.choice(fates) if rng.random() < share else None

    # --- Workers -----------------------------------------------------------------------------------------------------

    def work(self, numbers: Iterable[int], fates: Sequence[Fate | None]) -> None:
        """Run workers for these watches at the same time, each with its fate, and wait for their end."""
        self._note("work")
        self.find()
        connections.close_all()
        self._workers.work(
            [(self.watches[number], fate) for number, fate in zip(dict.fromkeys(numbers), fates, strict=False)]
        )

    def bad_neighbour(self, seed: int, fates: Sequence[Fate | None]) -> None:
        """The client of one app misbehaves, and its workers die. Meanwhile the other app must get the same repository."""
        self._note("bad neighbour")
        good, watch = self.apps[1], self.watches[1]
        App.objects.filter(pk=good.pk).update(paused=False, paused_reason="", cooldown_until=None, down_count=0)
        self._good_app = good.app_id
        self.mood(seed, 0.3)
        repo = self.repos[self._repo_of[watch.pk]]
        fates = [replace(fate, first="") if fate and fate.kind in SIGNALS else None for fate in fates]
        for _ in range(ATTEMPTS_OF_THE_GOOD):
            self.work([0, 1, 2], [fates[0], None, fates[1]])
            watch.refresh_from_db()
            if (watch.status, watch.last_commit) == (Status.SYNCED, repo.head):
                break
        else:
            raise AssertionError(f"another app blocks this one: {watch.status}, {watch.last_error}")
        assert self.world.copy(watch) == shas(without_ignored(repo.files(), watch.ignore_patterns))
        self._good_app = ""
        self.mood(0, 0.0)

    def find(self) -> None:
        """Do what the sweep does in a round."""
        self.world.check()
        remove_ended()
        enqueue_due()

    def _answer(self, note: Notification) -> Answer | None:
        """Runs in the client's threads."""
        answer = self._workers.apply_fate(note)
        if answer is not None:
            return answer
        with self._lock:
            mood = self._mood() if note.app_id != self._good_app else None
        if isinstance(mood, float):
            time.sleep(mood)
            return None
        if mood and note.kind == "delete" and mood.status in {404, 410}:
            return Answer(500)  # 404 and 410 would claim that it does not have the file
        return mood

    # --- The promise -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Sync without faults until nothing is due. Then the promise must hold."""
        self._note("quiet")
        self._quiet_at = self.events["work"]
        self.mood(0, 0.0)
        for app in self.apps:
            row = App.objects.get(pk=app.pk)
            if row.is_rotating_key:
                self.keys[row.app_id] = row.new_auth_key
        for _ in range(60):
            App.objects.update(paused=False, paused_reason="", cooldown_until=None, down_count=0)
            self.find()
            due = [watch for watch in self._alive() if watch.next_sync_at is not None or watch.status == Status.FAILED]
            if not due:
                break
            for watch in due:
                self.world.make_due(watch)
                AppRepository.objects.filter(pk=watch.pk).update(lease_until=F("created_at"))
                self.journal.begin(self.world.receiver.log)
                sync(watch.pk)
        else:
            raise AssertionError(f"something is still due: {[(watch.status, watch.last_error) for watch in due]}")
        self.check_settled()

    def check_settled(self) -> None:
        for watch in self._alive():
            self._check_watch(watch, self.repos[self._repo_of[watch.pk]])
        assert not SyncRun.objects.filter(outcome="").exists()
        runs.close_abandoned_operations()
        assert not BulkOperation.objects.filter(ended_at=None).exists()
        assert set(children(os.getpid())) <= self._ours | self._servers(), "a process was left behind"
        self.check_in_flight()

    def check_in_flight(self) -> None:
        """Check what must hold at any time for everything the client has received."""
        log = self.world.receiver.log
        self.journal.check(log)
        for run in SyncRun.objects.filter(outcome=""):
            assert run.started_at is None or run.files_done <= run.files_total, f"past 100 %: {run}"

    def _check_watch(self, watch: AppRepository, repo: Repo) -> None:
        expected = shas(without_ignored(repo.files(), watch.ignore_patterns))
        copy = self.world.copy(watch)
        assert copy == expected, (str(watch), set(copy) ^ set(expected))
        assert (watch.status, watch.last_commit, watch.files_failing) == (Status.SYNCED, repo.head, 0), str(watch)
        assert (watch.lease_until, watch.lease_slots, watch.next_sync_at) == (None, 0, None)
        held = Delivery.objects.filter(watch=watch)
        assert dict(held.values_list("path", "sha")) == expected
        assert not held.exclude(
            acknowledged=True, acknowledged_sha=F("sha"), generation__gte=watch.resend_floor
        ).exists()
        assert not watch.failures.filter(kind="failed").exists()
        assert watch.tree_files == len(expected)

    def _alive(self) -> list[AppRepository]:
        return list(AppRepository.objects.alive().select_related("app", "repository").order_by("pk"))

    def _servers(self) -> set[int]:
        servers = (self._database, self._redis)
        return {server.pid for server in servers if server is not None and server.pid is not None}

    def _learn(self, repo: int) -> None:
        self.journal.learn(self.repos[repo].name, shas(self.repos[repo].files()).values())

    def _mirror(self, repo: int) -> Path:
        watch = next(watch for watch in self.watches if self._repo_of[watch.pk] == repo)
        return mirror_of(watch.repository).directory

    def _unless_gone(self, act: Callable[[], object]) -> None:
        try:
            with transaction.atomic():
                act()
        except (NotFound, NotFailed):
            self._note("too late")

    def _note(self, event: str) -> None:
        self.events[event] += 1
