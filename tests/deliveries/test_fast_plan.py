"""Fast plans (engine.md §2): they cover what differs from the base, is in doubt or failed.

`compare_plans` compares every plan with the full one, so these tests only check when a plan is fast and what the client
receives.
"""

import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery
from deliveries_app.planning import planner
from deliveries_app.planning.delivery_rows import unsettled_paths
from deliveries_app.planning.plan import Plan
from deliveries_app.services import cancel_request, resync_single
from repositories_app.mirror import tree
from repositories_app.mirror.mirror import Mirror
from repositories_app.services import mirror_of
from tests.support.git import Entry, Repo, has_commit
from tests.support.histories import (
    assert_promise_kept,
    at_notification,
    compare_plans,
    kill_worker,
    kill_worker_before_first_byte,
    let_lease_run_out,
    refusing,
)
from tests.support.plans import read_rows
from tests.support.staff import make_app, make_watch
from tests.support.world import World

A, B, C = b"content A", b"content B", b"content C"


@pytest.fixture
def plans() -> Iterator[list[Plan]]:
    with compare_plans() as plans:
        yield plans


def was_fast(plan: Plan) -> bool:
    return plan.paths is not None


def start(world: World, files: dict[str, bytes | Entry] | None = None) -> tuple[Repo, AppRepository]:
    """Return a repository and a watch that has synced once and has a base."""
    repo, watch = world.watch(files if files is not None else {f"{n}.txt": A for n in range(5)})
    watch = world.sync(watch)
    assert watch.base_commit == repo.head
    return repo, watch


def test_file_created_and_deleted_while_another_fails(world: World, plans: list[Plan]) -> None:
    """A diff against "the last commit delivered completely" would not know that the file ever existed."""
    repo, watch = start(world)
    repo.commit({"ghost": B, "poison": B})
    world.answer(refusing("poison"))
    watch = world.sync(watch)
    assert "ghost" in world.copy(watch)
    assert watch.base_commit == repo.head  # the whole plan was tried: only listed files differ from this tree
    repo.commit({"ghost": None})
    watch = world.sync(watch)
    assert was_fast(plans[-1])
    assert "ghost" not in world.copy(watch)
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_failed_files_are_retried_without_upstream_change(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    repo.commit({"poison": B, "0.txt": B, "1.txt": None})
    world.answer(refusing("poison", "0.txt", "1.txt"))
    world.sync(watch)
    world.answer(None)
    world.sync(watch)
    assert was_fast(plans[-1])
    assert plans[-1].files == 3
    assert_promise_kept(world, repo, watch)


def test_base_is_cleared_during_a_run(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    repo.commit({"0.txt": B})
    seen: list[tuple[str, str]] = []
    world.answer(
        at_notification(1, lambda: seen.append(AppRepository.objects.values_list("base_commit", "base_rules").get()))
    )
    watch = world.sync(watch)
    assert seen == [("", "")]
    assert (watch.base_commit, watch.base_rules) == (
        repo.head,
        planner.delivery_rows.delivery_rules_of(watch).fingerprint,
    )
    assert_promise_kept(world, repo, watch)


def test_full_plan_after_a_killed_worker(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    repo.commit({"0.txt": B, "new": B})
    kill_worker(world, watch, lambda note: True)
    world.settle()
    assert not was_fast(plans[-1])
    assert_promise_kept(world, repo, watch)


def test_killed_after_announcing_and_upstream_reverted(world: World, plans: list[Plan]) -> None:
    """No row stays in doubt."""
    repo, watch = start(world)
    repo.commit({"0.txt": B, "new": B})
    kill_worker_before_first_byte(world, watch)
    repo.commit({"0.txt": A, "new": None})
    world.settle()
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize(("first", "second"), [(100, 5), (5, 100)], ids=["lower", "higher"])
def test_new_size_limit_causes_a_full_plan(world: World, plans: list[Plan], settings, first: int, second: int) -> None:
    settings.MAX_FILE_BYTES = first
    _, watch = start(world, {"small": b"1", "larger": A})
    settings.MAX_FILE_BYTES = second
    world.sync(watch)
    assert not was_fast(plans[-1])
    assert set(world.copy(watch)) == ({"small"} if second == 5 else {"small", "larger"})


def test_more_files_than_allowed_are_refused_at_once(world: World, settings) -> None:
    """The next re-sync, whose plan is full, would refuse them anyway. No `compare_plans`: it makes a full plan of each."""
    repo, watch = start(world)
    settings.MAX_FILES = 7
    repo.commit({"5.txt": A, "link": Entry.symlink("5.txt")})
    assert world.sync(watch).last_error_cause == ""
    repo.commit({"6.txt": A})
    assert world.sync(watch).last_error_cause == "too_large"
    repo.commit({"0.txt": None})
    assert_promise_kept(world, repo, world.sync(watch))


def test_resync_and_its_cancel_cause_full_plans(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    resync_single(Actor.command(), watch)
    world.sync(watch)
    assert not was_fast(plans[-1])
    resync_single(Actor.command(), watch)
    world.answer(at_notification(1, lambda: cancel_request(Actor.command(), watch)))
    world.settle()
    assert not was_fast(plans[-1])
    assert_promise_kept(world, repo, watch)


def test_lost_mirror_causes_a_full_plan(world: World, plans: list[Plan]) -> None:
    """Only the changed file is sent."""
    repo, watch = start(world)
    shutil.rmtree(mirror_of(watch.repository).directory)
    repo.commit({"0.txt": B})
    world.sync(watch)
    assert not was_fast(plans[-1])
    assert plans[-1].files == 1
    assert_promise_kept(world, repo, watch)


def test_lost_base_commit_causes_a_full_plan(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    copy = mirror_of(watch.repository)
    copy._git(["update-ref", "-d", f"refs/docora/{watch.watch_id}/base"])
    copy._git(["prune", "--expire=now"])
    copy._git(["repack", "-a", "-d", "-q"])
    repo.force_push({"0.txt": B, "other": A})
    assert not has_commit(copy, watch.base_commit)
    world.sync(watch)
    assert not was_fast(plans[-1])
    assert_promise_kept(world, repo, watch)


@pytest.mark.parametrize("changed", [3, 4], ids=["as many as allowed", "one more"])
def test_too_many_differences_cause_a_full_plan(world: World, plans: list[Plan], monkeypatch, changed: int) -> None:
    monkeypatch.setattr(tree, "MAX_DIFF_PATHS", 3)
    monkeypatch.setattr(planner, "MAX_DIFF_PATHS", 3)
    repo, watch = start(world)
    repo.commit({f"{n}.txt": B for n in range(changed)})
    world.sync(watch)
    assert was_fast(plans[-1]) is (changed == 3)
    assert_promise_kept(world, repo, watch)


LINK, MODULE = Entry.symlink("0.txt"), Entry.submodule("1" * 40)
CHANGES: dict[str, tuple[dict, dict, list[str]]] = {
    "a file is added": ({"x": A}, {"y": A}, ["create"]),
    "a file changes": ({"x": A, "y": A}, {"x": B}, ["update"]),
    "a file goes": ({"x": A, "y": A}, {"x": None}, ["delete"]),
    "a rename is a delete and a create": ({"x": A, "y": A}, {"x": None, "z": A}, ["delete", "create"]),
    "only the mode changes": ({"x": A}, {"x": Entry.executable(A)}, []),
    "mode and content change": ({"x": A}, {"x": Entry.executable(B)}, ["update"]),
    "a file becomes a link": ({"x": A, "y": A}, {"x": LINK}, ["delete"]),
    "a link becomes a file": ({"x": LINK, "y": A}, {"x": A}, ["create"]),
    "a link becomes a submodule": ({"x": LINK, "y": A}, {"x": MODULE}, []),
    "a submodule becomes a directory": ({"x": MODULE, "y": A}, {"x": None, "x/y": A}, ["create"]),
    "a file becomes a directory": ({"x": A, "y": A}, {"x": None, "x/y": A, "x/z": A}, ["delete", "create", "create"]),
    "a directory becomes a file": ({"x/y": A, "x/z": A}, {"x/y": None, "x/z": None, "x": A}, ["delete", "delete", "create"]),
    "a directory moves": ({"x/a": A, "x/b": B}, {"x/a": None, "x/b": None, "y/a": A, "y/b": B}, ["delete", "delete", "create", "create"]),
    "names that mean something to git": ({":(glob)*": A, "*": A, "[a]": A, "a": A}, {":(glob)*": B, "*": B, "[a]": B, ":!a": A, "-r": A}, ["create", "create", "update", "update", "update"]),
    "names that need quoting": ({'a"b': A, "a\\b": A, "t\tab": A}, {'a"b': B, "a\\b": B, "new\nline": A, " ": A, "é": A}, ["create", "create", "create", "update", "update"]),
    "the tree becomes empty": ({"x": A, "y/z": A}, {"x": None, "y/z": None}, ["delete", "delete"]),
}  # fmt: skip


def test_every_kind_of_change_is_planned_fast(world: World, plans: list[Plan]) -> None:
    for number, (name, (before, change, kinds)) in enumerate(CHANGES.items()):
        repo, watch = world.watch(before, name=f"acme/change-{number}")
        watch = world.sync(watch)
        sent = len(world.requests())
        gone = {path: None for path, content in change.items() if content is None}
        if gone and len(gone) < len(change):
            repo.commit(gone)  # fast-import needs a path to be free before it adds files below it
        repo.commit({path: content for path, content in change.items() if content is not None} or gone)
        watch = world.sync(watch)
        assert was_fast(plans[-1]), name
        assert [record.kind for record in world.requests()[sent:]] == kinds, name
        assert_promise_kept(world, repo, watch)
        files = repo.files()
        assert (watch.tree_files, watch.tree_bytes) == (len(files), sum(map(len, files.values()))), name


def test_force_push_sends_only_the_difference(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    sent = len(world.requests())
    repo.force_push({f"{n}.txt": A for n in range(4)} | {"new": B})
    world.settle()
    assert was_fast(plans[-1])
    assert [(record.kind, record.path) for record in world.requests()[sent:]] == [
        ("delete", "4.txt"),
        ("create", "new"),
    ]
    assert_promise_kept(world, repo, watch)


def test_renamed_branch_sends_nothing(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    sent = len(world.requests())
    repo.rename_branch("trunk")
    world.settle()
    watch.refresh_from_db()
    assert watch.branch == "trunk"
    assert len(world.requests()) == sent
    repo.commit({"0.txt": B})
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_non_utf8_path_added_and_removed(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    repo.commit({"latin-\udce9": A, "0.txt": B})
    watch = world.sync(watch)
    assert [failure.cause for failure in watch.failures.all()] == ["not_utf8"]
    repo.commit({"latin-\udce9": None})
    watch = world.sync(watch)
    assert not watch.failures.exists()
    assert all(map(was_fast, plans[1:]))
    assert_promise_kept(world, repo, watch)


def test_skipped_list_is_updated_when_nothing_is_sent(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world, {"file": A, "old-link": LINK})
    repo.commit({"old-link": None, "new-link": LINK})
    world.settle()
    assert set(watch.failures.values_list("path", "kind")) == {("new-link", "skipped")}
    repo.commit({"new-link": None, "file": LINK, "other": A})
    world.settle()
    assert set(watch.failures.values_list("path", "kind")) == {("file", "skipped")}
    assert all(map(was_fast, plans[1:]))


def test_blocked_path_that_was_a_link_in_between(world: World, plans: list[Plan]) -> None:
    """The run at the link's commit is killed after it listed the path as skipped, not failed.

    The next plan must still cover the path.
    """
    repo, watch = start(world, {"a": A, "z": A})
    repo.commit({"a": None})
    at_b = repo.commit({"a/b": B})
    world.answer(refusing("a"))
    watch = world.sync(watch)
    assert watch.base_commit == at_b
    fields = ("base_commit", "base_rules", "tree_files", "tree_bytes", "left_out")
    before = AppRepository.objects.values(*fields).get(pk=watch.pk)
    repo.commit({"a/b": LINK, "z": B})
    kill_worker_before_first_byte(world, watch)
    AppRepository.objects.filter(pk=watch.pk).update(**before)  # as if killed before anything was announced
    repo.commit({"a/b": B, "z": A})
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_row_in_doubt_without_a_listed_failure_is_planned(world: World, plans: list[Plan]) -> None:
    repo, watch = start(world)
    repo.commit({"0.txt": B, "1.txt": None})
    world.answer(refusing("0.txt", "1.txt"))
    world.sync(watch)
    watch.failures.all().delete()
    world.answer(None)
    world.sync(watch)
    assert was_fast(plans[-1])
    assert_promise_kept(world, repo, watch)


def test_frozen_worker_keeps_its_successor_s_failures(world: World, monkeypatch) -> None:
    """The successor lists a blocked path, which has no row, and sets the base. Only the list mentions the path then."""
    repo, watch = start(world, {"a": A, "z": A})
    keep_base = Mirror.keep_base

    def freeze(*arguments) -> None:
        monkeypatch.setattr(Mirror, "keep_base", keep_base)
        let_lease_run_out(watch)
        repo.commit({"a": None})
        repo.commit({"a/b": B})
        world.answer(refusing("a"))
        world.sync(watch)  # the successor's whole run
        assert set(watch.failures.values_list("path", flat=True)) == {"a", "a/b"}

    monkeypatch.setattr(Mirror, "keep_base", freeze)
    repo.commit({"z": B})
    world.sync(watch)
    assert set(watch.failures.values_list("path", flat=True)) == {"a", "a/b"}
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_random_walk_of_trees(world: World, plans: list[Plan]) -> None:
    chance = random.Random(20260105)
    names = ["a", "b", "c/a", "c/b", "c.d", "d/e/f", "é", "z"]
    repo, watch = start(world, {"keep": A, "a": A, "c/a": A})
    failing: set[str] = set()
    world.answer(lambda note: refusing(*failing)(note))
    for _ in range(12):
        files = repo.files()
        changes: dict[str, bytes | Entry | None] = {
            name: chance.choice([A, B, C, LINK, Entry.executable(A), None if name in files else A])
            for name in chance.sample(names, 3)
        }
        repo.commit(changes)
        failing = set(chance.sample(names, chance.choice([0, 0, 1, 3])))
        watch = world.sync(watch)
        assert watch.tree_files == len(repo.files())
    assert all(map(was_fast, plans[1:]))
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_paths_in_doubt_are_found_without_reading_the_others(db, postgres_server) -> None:
    """PostgreSQL's statistics are often those of a first sync under way, when most files were not acknowledged yet."""
    watch = make_watch(make_app("Portal"), "docs")
    fields: dict[str, Any] = {"mode": "100644", "kind": "create", "sha": "0" * 64, "size": 1, "sequence": 1}
    fields |= {"generation": 1, "acknowledged": False, "updated_at": timezone.now()}
    Delivery.objects.bulk_create(
        [Delivery(watch=watch, path=f"folder/{number}.txt", **fields) for number in range(20_000)], batch_size=5000
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    Delivery.objects.exclude(path="folder/7.txt").update(acknowledged=True)
    assert unsettled_paths(watch.pk, 10) == ["folder/7.txt"]
    assert read_rows(lambda: unsettled_paths(watch.pk, 10), Delivery._meta.db_table) <= 2
