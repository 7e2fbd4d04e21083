"""The cost of a sync grows with the change, not with the repository: statements, processes, requests and rows.

`make bench` measures the time.
"""

import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection
from django.db.models.sql.compiler import SQLCompiler, SQLInsertCompiler, SQLUpdateCompiler
from django.test.utils import CaptureQueriesContext
from redis import Redis

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.planning.plan import Change
from deliveries_app.scheduling import request_sync
from deliveries_app.services import resync_single
from deliveries_app.sync import recorder, slots
from deliveries_app.sync.content import blocks
from tests.support.git import Repo
from tests.support.syncing import sync
from tests.support.world import World

CHANGED = {f"file-{number:04}.txt": b"changed" for number in range(0, 40, 2)}

ONE_BATCH = 8  # statements


@pytest.fixture(autouse=True)
def batches_of_ten(settings, monkeypatch) -> None:
    settings.RECORD_BATCH = 10
    monkeypatch.setattr(recorder, "PUBLISH_SECONDS", 1000.0)


@pytest.fixture(autouse=True)
def _no_rebalancing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a run that is slow on a busy machine would recompute its share of the app's slots, in extra statements."""
    monkeypatch.setattr(slots, "_REBALANCE_SECONDS", (60.0, 60.0))


@dataclass
class Spent:
    """Counts statements by verb and table, and git processes by subcommand."""

    statements: Counter[str] = field(default_factory=Counter)
    processes: Counter[str] = field(default_factory=Counter)
    notifications: int = 0
    requests_to_host: int = 0


@contextmanager
def spending(world: World, spent: Spent) -> Iterator[None]:
    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and threading.get_ident() in listening:  # the git server starts processes too
            words = [str(word) for word in arguments[1]]
            start = words.index("git") + 1
            verb = start + 2 if words[start] == "--git-dir" else start
            spent.processes[words[verb]] += 1

    sent, asked = len(world.requests()), len(world.git.server.requests)
    listening = [threading.get_ident()]
    sys.addaudithook(note)  # cannot be removed; does nothing once the list is empty
    try:
        with CaptureQueriesContext(connection) as queries:
            yield
    finally:
        listening.clear()
    for query in queries:
        words = re.sub(r"^\d+ times: ", "", query["sql"]).replace('"', "").split()
        spent.statements[words[0] if "SAVEPOINT" in words else " ".join(words[:3])] += 1
    spent.notifications = len(world.requests()) - sent
    spent.requests_to_host = len(world.git.server.requests) - asked


def first_sync(world: World, files: int) -> tuple[Repo, AppRepository, Spent]:
    contents = {f"file-{number:04}.txt": b"content %d" % number for number in range(files)}
    repo, watch = world.watch(contents, name=f"acme/of-{files}")
    spent = Spent()
    with spending(world, spent):
        world.sync(watch)
    return repo, watch, spent


def small_change(world: World, repo: Repo, watch: AppRepository) -> Spent:
    repo.commit(CHANGED)
    spent = Spent()
    with spending(world, spent):
        world.sync(watch)
    return spent


def test_statements_for_each_batch_of_a_first_sync(world: World) -> None:
    few, many = first_sync(world, 100)[2], first_sync(world, 300)[2]
    assert (few.notifications, many.notifications) == (100, 300)
    assert many.processes == few.processes
    assert many.requests_to_host == few.requests_to_host
    batches = (300 - 100) / 10
    more = many.statements - few.statements
    assert more.total() <= ONE_BATCH * batches + 3, more  # a slow machine also extends the lease


def test_redis_updates_of_batches_are_combined(world: World, redis_client: Redis) -> None:
    transactions = []
    for files in (100, 300):
        redis_client.config_resetstat()
        first_sync(world, files)
        transactions.append(redis_client.info("commandstats")["cmdstat_exec"]["calls"])
    assert transactions[0] == transactions[1]


def test_git_processes_of_a_first_sync(world: World) -> None:
    spent = first_sync(world, 30)[2]
    assert spent.processes == {"index-pack": 1, "cat-file": 1}
    assert spent.requests_to_host == 2


def test_cost_of_a_change_is_independent_of_repository_size(world: World) -> None:
    small = small_change(world, *first_sync(world, 40)[:2])
    large = small_change(world, *first_sync(world, 1500)[:2])
    assert small.notifications == large.notifications == 20
    assert large.processes == small.processes
    assert large.requests_to_host == small.requests_to_host
    assert large.processes == {"index-pack": 1, "cat-file": 1}
    assert large.requests_to_host == 2
    assert (
        large.statements.total() <= small.statements.total() + ONE_BATCH
    )  # on a slow machine, one batch may be recorded as two


def test_files_are_read_in_blocks_of_eight_megabytes_at_most(settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES = 3_000_000
    changes = [Change("create", str(number), size=3_000_000) for number in range(5)]
    assert [len(block) for block in blocks(iter(changes))] == [2, 2, 1]


def test_requests_of_a_change_share_a_connection(world: World) -> None:
    repo, watch, _ = first_sync(world, 5)
    repo.commit({"file-0000.txt": b"changed"})
    connections: list[threading.Thread] = []  # the server has a thread for each

    def note(method: str, target: str) -> None:
        connections.append(threading.current_thread())

    world.git.server.on_request = note
    world.sync(watch)
    assert (len(connections), len(set(connections))) == (2, 1)


def test_small_change_writes_only_its_own_rows(world: World) -> None:
    repo, watch, _ = first_sync(world, 60)
    before = world.rows(watch)
    small_change(world, repo, watch)
    touched = {path for path, row in world.rows(watch).items() if row.updated_at != before[path].updated_at}
    assert touched == set(CHANGED)


def test_sync_without_changes_reads_no_tree(world: World) -> None:
    _, watch, _ = first_sync(world, 30)
    spent = Spent()
    with spending(world, spent):
        world.sync(watch)
    assert spent.notifications == 0
    assert not spent.processes
    assert not [words for words in spent.statements if words.endswith("deliveries_app_delivery")], spent.statements


def test_statements_of_checks_are_independent_of_their_number(world: World) -> None:
    counts = []
    for known in (2, 20):
        for number in range(AppRepository.objects.count(), known):
            world.watch(name=f"acme/watched-{number}")
        world.settle()
        spent = Spent()
        with spending(world, spent):
            assert world.check() == known
        assert not spent.processes
        assert spent.requests_to_host == known
        counts.append(spent.statements)
    assert counts[0] == counts[1]


def test_cost_of_a_small_resync(world: World) -> None:
    _, watch, _ = first_sync(world, 8)
    resync_single(Actor.command(), watch)
    spent = Spent()
    with spending(world, spent):
        sync(watch.pk)
    assert spent.notifications == 8
    assert spent.requests_to_host == 1
    assert spent.processes == {"cat-file": 1}
    transactions = sum(count for words, count in spent.statements.items() if words.startswith("BEGIN"))
    statements = spent.statements.total() - transactions - spent.statements["COMMIT"]
    assert transactions <= 5, spent.statements
    assert statements <= 20, spent.statements


def test_statements_are_not_recompiled_for_each_sync(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the SQL of a claim takes ten times as long as executing it."""
    repo, watch, _ = first_sync(world, 8)
    _, other, _ = first_sync(world, 9)
    small_change(world, repo, watch)
    resync_single(Actor.command(), watch)
    world.sync(watch)

    built: list[str] = []
    for compiler in (SQLCompiler, SQLInsertCompiler, SQLUpdateCompiler):

        def noting(self: Any, *arguments: Any, plain: Any = compiler.as_sql, **named: Any) -> Any:
            statements = plain(self, *arguments, **named)
            built.append(str(statements))
            return statements

        monkeypatch.setattr(compiler, "as_sql", noting)
    resync_single(Actor.command(), other)
    built.clear()
    sync(other.pk)
    assert built == []
    repo.commit({"file-0000.txt": b"changed again"})
    request_sync(AppRepository.objects.filter(pk=watch.pk))
    built.clear()
    sync(watch.pk)
    assert len(built) <= 3, built
