"""`FILE_TRANSFORMS`: what the client holds is what the transforms make of HEAD, and a change of them is a change."""

from collections.abc import Callable
from functools import partial

import pytest

from deliveries_app.models import AppRepository, Status
from deliveries_app.planning import delivery_rows, planner, transforms
from deliveries_app.planning.transforms import SourceFile
from repositories_app import services as repositories
from repositories_app.git.remote import Head
from tests.support import transforms as samples
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, kill_worker, refusing, sha
from tests.support.world import World


@pytest.fixture
def use(settings) -> Callable[..., object]:
    """Put these transforms, by class name, into use."""
    return partial(samples.put_into_use, settings)


def assert_followed(world: World, repo: Repo, watch: AppRepository) -> None:
    assert_promise_kept(world, repo, watch, samples.made_of(repo.files()))


def told_since(world: World, count: int) -> list[tuple[str, str]]:
    return [(record.kind, record.path) for record in world.requests()[count:]]


def left_out(watch: AppRepository) -> dict[str, int]:
    watch.refresh_from_db()
    return watch.left_out


def test_sha_and_size_are_of_what_is_sent(world: World, use) -> None:
    use("Shout")
    repo, watch = world.watch({"a.txt": b"hello", "b/ä.txt": b"x" * 30, "empty": b""})
    world.settle()
    assert_followed(world, repo, watch)
    row = world.rows(watch)["a.txt"]
    assert (row.sha, row.size, row.source_path) == (sha(b"HELLO"), 5, "a.txt")
    assert (watch.tree_files, watch.tree_bytes) == (3, 35)


def test_transforms_run_in_their_order_and_a_dropped_file_is_counted_and_never_sent(world: World, use) -> None:
    use("DropDrafts", "Flatten", "Shout")
    repo, watch = world.watch({"drafts/a": b"draft", "docs/b": b"b", "c": b"c"})
    world.settle()
    assert world.copy(watch) == {"flat/b": sha(b"B"), "flat/c": sha(b"C")}
    assert_followed(world, repo, watch)
    assert left_out(watch) == {"transform": 1}
    assert not watch.failures.exists()
    run = world.runs(watch)[0]
    assert (run.files_skipped, run.left_out) == (1, {"transform": 1})
    repo.commit({"drafts/a": None, "published/a": b"draft"})
    world.settle()
    assert_followed(world, repo, watch)
    assert left_out(watch) == {}


def test_only_what_changed_is_sent_and_nothing_is_read_again_for_what_is_known(world: World, use, monkeypatch) -> None:
    use("Flatten")
    repo, watch = world.watch({f"{n}/{n}": b"%d" % n for n in range(5)})
    world.settle()
    told = len(world.requests())
    asked: list[str] = []
    apply = transforms.Transforms.apply
    monkeypatch.setattr(transforms.Transforms, "apply", lambda self, file: asked.append(file.path) or apply(self, file))
    repo.commit({"3/3": b"new", "4/4": None, "9/9": b"9"})
    world.settle()
    assert told_since(world, told) == [("delete", "flat/4"), ("create", "flat/9"), ("update", "flat/3")]
    assert set(asked) == {"3/3", "9/9"}
    monkeypatch.undo()
    assert_followed(world, repo, watch)


def test_putting_transforms_into_use_and_out_again_sends_only_what_comes_out_different(world: World, use) -> None:
    repo, watch = world.watch({"same": b"CAPITALS", "other": b"small", "x/drafts": b"X"})
    world.settle()
    told = len(world.requests())
    use("Shout", "DropDrafts")
    world.settle()  # found by the check, though HEAD has not moved
    assert told_since(world, told) == [("update", "other")]
    assert_followed(world, repo, watch)
    assert {row.source_path for row in world.rows(watch).values()} == {"same", "other", "x/drafts"}
    use()
    world.settle()
    assert told_since(world, told) == [("update", "other"), ("update", "other")]
    assert_promise_kept(world, repo, watch)
    assert {row.source_path for row in world.rows(watch).values()} == {""}


def test_another_version_is_a_change(world: World, use, monkeypatch) -> None:
    use("Shout")
    repo, watch = world.watch({"a": b"a", "b": b"1"})
    world.settle()
    told = len(world.requests())
    monkeypatch.setattr(samples.Shout, "version", 2)
    monkeypatch.setattr(samples.Shout, "__call__", lambda self, file: SourceFile(file.path, file.content * 2))
    use("Shout")
    world.settle()
    assert sorted(told_since(world, told)) == [("update", "a"), ("update", "b")]
    assert world.copy(watch) == {"a": sha(b"aa"), "b": sha(b"11")}
    assert_followed(world, repo, watch)


def test_two_files_may_change_places(world: World, use) -> None:
    repo, watch = world.watch({"a": b"was a", "b": b"was b", "c": b"c"})
    world.settle()
    use("Swap")
    world.settle()
    assert world.copy(watch) == {"a": sha(b"was b"), "b": sha(b"was a"), "c": sha(b"c")}
    repo.commit({"a": b"new a"})
    told = len(world.requests())
    world.settle()
    assert told_since(world, told) == [("update", "b")]
    assert_followed(world, repo, watch)
    use()
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_one_that_raises_fails_its_file_and_not_the_run_and_tells_nothing_of_the_content(world: World, use) -> None:
    use("Picky", "Shout")
    repo, watch = world.watch({"bad": b"poison and a secret", "good": b"good"})
    watch = world.sync(watch)
    failure = watch.failures.get()
    assert (failure.path, failure.kind, failure.cause) == ("bad", "failed", "transform")
    assert failure.message == "Transform picky failed: ValueError"
    assert set(world.copy(watch)) == {"good"}
    assert (watch.status, watch.files_failing, watch.tree_files) == (Status.PENDING, 1, 2)
    assert "secret" not in watch.last_error
    repo.commit({"bad": b"mended"})
    world.settle()
    assert_followed(world, repo, watch)
    assert not watch.failures.exists()


def test_one_that_wants_to_end_the_process_fails_its_file_too(world: World, use) -> None:
    use("Quits")
    _, watch = world.watch({"bad": b"poison", "good": b"good"})
    watch = world.sync(watch)
    assert watch.failures.get().message == "Transform quits failed: SystemExit"
    assert set(world.copy(watch)) == {"good"}


def test_what_the_client_has_of_a_file_stays_while_its_transform_fails(world: World, use) -> None:
    use("Picky", "Flatten")
    repo, watch = world.watch({"x/a": b"fine", "y/b": b"fine", "z": b"z"})
    world.settle()
    repo.commit({"x/a": b"poison", "y/b": None})
    watch = world.sync(watch)
    assert world.copy(watch) == {"flat/a": sha(b"fine"), "flat/z": sha(b"z")}
    assert list(watch.failures.values_list("path", "cause")) == [("x/a", "transform")]
    repo.commit({"x/a": None})
    world.settle()
    assert_followed(world, repo, watch)


def test_a_file_that_was_sent_as_it_was_stays_too_when_transforms_begin_with_a_failure(world: World, use) -> None:
    repo, watch = world.watch({"a": b"poison", "b": b"b"})
    world.settle()
    use("Picky")
    watch = world.sync(watch)
    assert set(world.copy(watch)) == {"a", "b"}
    use()
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_a_failing_file_stays_listed_though_another_file_gets_its_path(world: World, use, settings) -> None:
    settings.RECORD_BATCH = 1
    use("Swap", "Picky")
    repo, watch = world.watch({"a": b"poison", "b": b"fine"})
    watch = world.sync(watch)
    assert world.copy(watch) == {"a": sha(b"fine")}
    assert list(watch.failures.values_list("path", "cause")) == [("a", "transform")]
    watch = world.sync(watch)
    assert list(watch.failures.values_list("path", "cause")) == [("a", "transform")]
    repo.commit({"a": b"mended"})
    world.settle()
    assert_followed(world, repo, watch)


@pytest.mark.parametrize(("kept", "wanted"), [("a", "a/b"), ("a/b", "a")], ids=["below", "above"])
def test_no_other_file_is_sent_above_or_below_what_the_client_keeps_of_a_failing_one(
    world: World, use, kept: str, wanted: str
) -> None:
    use("ByContent", "Picky")
    repo, watch = world.watch({"1": f"path: {kept}\nfine".encode(), "2": b"x"})
    world.settle()
    repo.commit({"1": f"path: {kept}\npoison".encode(), "2": f"path: {wanted}\nx".encode()})
    watch = world.sync(watch)
    assert world.copy(watch) == {kept: sha(f"path: {kept}\nfine".encode())}
    assert set(watch.failures.values_list("path", "cause")) == {("1", "transform"), (wanted, "blocked")}
    assert "a transform fails for" in watch.failures.get(cause="blocked").message
    repo.commit({"1": f"path: {kept}\nfine".encode(), "2": b"x"})
    world.settle()
    assert_followed(world, repo, watch)
    repo.commit({"1": b"elsewhere", "2": f"path: {wanted}\nx".encode()})
    world.settle()
    assert_followed(world, repo, watch)


def test_of_two_files_that_end_at_one_path_the_first_by_source_path_is_sent_and_the_other_listed(
    world: World, use
) -> None:
    use("Flatten")
    repo, watch = world.watch({"b/x": b"from b", "c/x": b"from c", "c/y": b"y"})
    world.settle()
    assert world.copy(watch)["flat/x"] == sha(b"from b")
    listed = watch.failures.get()
    assert (listed.path, listed.kind, listed.cause) == ("c/x", "skipped", "collision")
    assert listed.message == "Its transforms give it the path flat/x, which b/x has already."
    assert left_out(watch) == {"collision": 1}
    repo.commit({"a/x": b"from a"})  # now this one comes first
    world.settle()
    assert world.copy(watch)["flat/x"] == sha(b"from a")
    assert left_out(watch) == {"collision": 2}
    assert_followed(world, repo, watch)
    repo.commit({"a/x": None, "b/x": None})
    world.settle()
    assert world.copy(watch)["flat/x"] == sha(b"from c")
    assert not watch.failures.exists()
    assert_followed(world, repo, watch)


def test_a_file_cannot_be_put_below_another_file(world: World, use) -> None:
    use("ByContent")
    repo, watch = world.watch({"1": b"path: dir\n", "2": b"path: dir-a\n", "3": b"path: dir/x\n", "4": b"path: dir0\n"})
    world.settle()
    assert set(world.copy(watch)) == {"dir", "dir-a", "dir0"}
    assert list(watch.failures.values_list("path", "cause")) == [("3", "collision")]
    repo.commit({"1": None})
    world.settle()
    assert set(world.copy(watch)) == {"dir-a", "dir/x", "dir0"}
    assert_followed(world, repo, watch)


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        (b"../up", "unsafe_path"),
        (b"/root", "unsafe_path"),
        (b".git/hooks/post-checkout", "unsafe_path"),
        (b"nul\0byte", "unsafe_path"),
        (b"x" * 1025, "path_too_long"),
        (b"latin-\xe9", "not_utf8"),
    ],
)
def test_the_path_that_a_file_gets_has_to_pass_the_same_rules(world: World, use, target: bytes, cause: str) -> None:
    use("ByContent")
    _, watch = world.watch({"bad": b"path: %b\nx" % target, "good": b"x"})
    world.settle()
    assert set(world.copy(watch)) == {"good"}
    assert list(watch.failures.values_list("path", "cause")) == [("bad", cause)]
    assert left_out(watch) == {cause: 1}


def test_whether_a_file_is_sent_in_chunks_is_decided_by_what_is_sent(world: World, use, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    use("Expand")
    repo, watch = world.watch({"grows": b"abc", "nul": b"\0x", "empty": b""})
    world.settle()
    assert_followed(world, repo, watch)
    assert len([record for record in world.requests("create") if record.path == "grows"]) > 1
    use("Shorten")
    repo.commit({"large": b"0123456789" * 100})
    world.settle()
    assert_followed(world, repo, watch)
    assert len([record for record in world.requests() if record.path == "large"]) == 1


def test_what_becomes_larger_than_the_limit_is_listed(world: World, use, settings) -> None:
    settings.MAX_FILE_BYTES = 500
    use("Expand")
    _, watch = world.watch({"grows": b"abcdef", "fits": b"abc"})
    world.settle()
    assert set(world.copy(watch)) == {"fits"}
    listed = watch.failures.get()
    assert (listed.path, listed.cause) == ("grows", "too_large")
    assert listed.message.startswith("After its transforms: 600 bytes")


@pytest.mark.parametrize("threshold", [50, 1_000_000], ids=["in chunks", "whole"])
def test_a_transform_that_is_not_deterministic_never_sends_what_was_not_announced(
    world: World, use, settings, threshold: int
) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = threshold, 50
    use("Moody")
    _, watch = world.watch({"a": b"a"})
    watch = world.sync(watch)
    if threshold == 50:
        failure = watch.failures.get()
        assert (failure.cause, failure.path) == ("transform", "a")
        assert "deterministic" in failure.message
        assert world.copy(watch) == {}
    else:
        row = world.rows(watch)["a"]
        assert world.copy(watch) == {"a": row.sha}


def test_a_transform_that_gives_back_something_else_fails_its_file(world: World, use) -> None:
    use("Nonsense")
    _, watch = world.watch({"a": b"a"})
    watch = world.sync(watch)
    assert watch.failures.get().message == "Transform nonsense gave back something other than a file."


def test_a_killed_worker_and_a_refusing_client_change_nothing_about_the_end(world: World, use) -> None:
    use("DropDrafts", "Flatten", "Shout")
    repo, watch = world.watch({f"{n}/{n}": b"text %d" % n for n in range(6)} | {"drafts/x": b"x"})
    kill_worker(world, watch, lambda note: note.path == "flat/3")
    repo.commit({"2/2": None, "5/5": b"other", "drafts/x": None, "x": b"x"})
    world.answer(refusing("flat/1", "flat/2"))
    world.sync(watch)
    world.answer(None)
    world.settle()
    assert_followed(world, repo, watch)


def test_a_list_that_cannot_be_used_fails_the_sync_in_words(world: World, use) -> None:
    use("Missing")
    _, watch = world.watch({"a": b"a"})
    watch = world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "transform")
    assert watch.last_error.startswith("FILE_TRANSFORMS names 'tests.support.transforms.Missing', which cannot be")
    assert world.requests() == []


def test_the_lease_is_kept_while_what_is_known_is_joined_with_the_rows(world: World, use, monkeypatch) -> None:
    """By then the tree has been read to its end."""
    use("Flatten")
    repo, watch = world.watch({f"{n}/{n}": b"%d" % n for n in range(5)})
    world.settle()
    monkeypatch.setattr(planner, "_TICK_EVERY", 1)
    ticks: list[None] = []
    mirror = repositories.mirror_of(watch.repository)
    head = Head(repo.head, "main")
    planned = planner.full_plan(head, watch, delivery_rows.delivery_rules_of(watch), mirror, lambda: ticks.append(None))
    planned.plan.close()
    assert len(ticks) == 10
