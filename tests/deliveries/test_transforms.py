"""`FILE_TRANSFORMS`: the client receives the transformed files of HEAD, also after the transforms have changed."""

from collections.abc import Callable
from functools import partial

import pytest

from deliveries_app.models import AppRepository, Delivery, Status
from deliveries_app.planning import delivery_rows, planner, transforms
from deliveries_app.planning.transforms import SourceFile
from deliveries_app.receiver import Answer
from deliveries_app.sync.content import Contents
from repositories_app import services as repositories
from repositories_app.git.protocol import Head
from tests.support import transforms as samples
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, kill_worker, refusing, sha
from tests.support.world import World


@pytest.fixture
def use(settings) -> Callable[..., object]:
    """Return a function that activates transforms by class name."""
    return partial(samples.use_transforms, settings)


def assert_in_sync(world: World, repo: Repo, watch: AppRepository) -> None:
    assert_promise_kept(world, repo, watch, samples.transformed(repo.files()))


def sent_since(world: World, count: int) -> list[tuple[str, str]]:
    return [(record.kind, record.path) for record in world.requests()[count:]]


def left_out(watch: AppRepository) -> dict[str, int]:
    watch.refresh_from_db()
    return watch.left_out


def test_row_has_sha_and_size_of_the_transformed_file(world: World, use) -> None:
    use("Shout")
    repo, watch = world.watch({"a.txt": b"hello", "b/ä.txt": b"x" * 30, "empty": b""})
    world.settle()
    assert_in_sync(world, repo, watch)
    row = world.rows(watch)["a.txt"]
    assert (row.sha, row.size, row.source_path) == (sha(b"HELLO"), 5, "a.txt")
    assert (watch.tree_files, watch.tree_bytes) == (3, 35)


def test_transforms_run_in_order(world: World, use) -> None:
    """Dropped files are counted and not sent."""
    use("DropDrafts", "Flatten", "Shout")
    repo, watch = world.watch({"drafts/a": b"draft", "docs/b": b"b", "c": b"c"})
    world.settle()
    assert world.copy(watch) == {"flat/b": sha(b"B"), "flat/c": sha(b"C")}
    assert_in_sync(world, repo, watch)
    assert left_out(watch) == {"transform": 1}
    assert not watch.failures.exists()
    run = world.runs(watch)[0]
    assert (run.files_skipped, run.left_out) == (1, {"transform": 1})
    repo.commit({"drafts/a": None, "published/a": b"draft"})
    world.settle()
    assert_in_sync(world, repo, watch)
    assert left_out(watch) == {}


def test_only_changed_files_are_transformed_and_sent(world: World, use, monkeypatch) -> None:
    """Known results come from the rows."""
    use("Flatten")
    repo, watch = world.watch({f"{n}/{n}": b"%d" % n for n in range(5)})
    world.settle()
    sent = len(world.requests())
    transformed: list[str] = []
    apply = transforms.Transforms.apply
    monkeypatch.setattr(
        transforms.Transforms, "apply", lambda self, file: transformed.append(file.path) or apply(self, file)
    )
    repo.commit({"3/3": b"new", "4/4": None, "9/9": b"9"})
    world.settle()
    assert sent_since(world, sent) == [("delete", "flat/4"), ("create", "flat/9"), ("update", "flat/3")]
    assert set(transformed) == {"3/3", "9/9"}
    monkeypatch.undo()
    assert_in_sync(world, repo, watch)


def test_adding_and_removing_transforms_sends_only_differences(world: World, use) -> None:
    repo, watch = world.watch({"same": b"CAPITALS", "other": b"small", "x/drafts": b"X"})
    world.settle()
    sent = len(world.requests())
    last_sent = Delivery.objects.filter(watch=watch, path="same").values_list("kind", "sequence", "updated_at")
    before = last_sent.get()
    use("Shout", "DropDrafts")
    world.settle()  # the check notices it although HEAD has not moved
    assert sent_since(world, sent) == [("update", "other")]
    assert_in_sync(world, repo, watch)
    assert {row.source_path for row in world.rows(watch).values()} == {"same", "other", "x/drafts"}
    use()
    world.settle()
    assert sent_since(world, sent) == [("update", "other"), ("update", "other")]
    assert last_sent.get() == before
    assert_promise_kept(world, repo, watch)
    assert {row.source_path for row in world.rows(watch).values()} == {""}


def test_new_version_transforms_every_file_again(world: World, use, monkeypatch) -> None:
    use("Shout")
    repo, watch = world.watch({"a": b"a", "b": b"1"})
    world.settle()
    sent = len(world.requests())
    monkeypatch.setattr(samples.Shout, "version", 2)
    monkeypatch.setattr(samples.Shout, "__call__", lambda self, file: SourceFile(file.path, file.content * 2))
    use("Shout")
    world.settle()
    assert sorted(sent_since(world, sent)) == [("update", "a"), ("update", "b")]
    assert world.copy(watch) == {"a": sha(b"aa"), "b": sha(b"11")}
    assert_in_sync(world, repo, watch)


def test_files_can_swap_paths(world: World, use) -> None:
    repo, watch = world.watch({"a": b"was a", "b": b"was b", "c": b"c"})
    world.settle()
    use("Swap")
    world.settle()
    assert world.copy(watch) == {"a": sha(b"was b"), "b": sha(b"was a"), "c": sha(b"c")}
    repo.commit({"a": b"new a"})
    sent = len(world.requests())
    world.settle()
    assert sent_since(world, sent) == [("update", "b")]
    assert_in_sync(world, repo, watch)
    use()
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_transform_that_raises_fails_only_its_file(world: World, use) -> None:
    """The message contains nothing of the file."""
    use("Picky", "Shout")
    repo, watch = world.watch({"bad": b"poison and a secret", "good": b"good"})
    watch = world.sync(watch)
    failure = watch.failures.get()
    assert (failure.path, failure.kind, failure.cause) == ("bad", "failed", "transform")
    assert failure.message == "Transform picky failed: ValueError."
    assert set(world.copy(watch)) == {"good"}
    assert (watch.status, watch.files_failing, watch.tree_files) == (Status.PENDING, 1, 2)
    assert "secret" not in watch.last_error
    repo.commit({"bad": b"fixed"})
    world.settle()
    assert_in_sync(world, repo, watch)
    assert not watch.failures.exists()


def test_transform_that_exits_fails_only_its_file(world: World, use) -> None:
    use("Quits")
    _, watch = world.watch({"bad": b"poison", "good": b"good"})
    watch = world.sync(watch)
    assert watch.failures.get().message == "Transform quits failed: SystemExit."
    assert set(world.copy(watch)) == {"good"}


def test_client_keeps_a_file_while_its_transform_fails(world: World, use) -> None:
    use("Picky", "Flatten")
    repo, watch = world.watch({"x/a": b"fine", "y/b": b"fine", "z": b"z"})
    world.settle()
    repo.commit({"x/a": b"poison", "y/b": None})
    watch = world.sync(watch)
    assert world.copy(watch) == {"flat/a": sha(b"fine"), "flat/z": sha(b"z")}
    assert list(watch.failures.values_list("path", "cause")) == [("x/a", "transform")]
    repo.commit({"x/a": None})
    world.settle()
    assert_in_sync(world, repo, watch)


def test_new_transform_that_fails_keeps_the_old_file(world: World, use) -> None:
    repo, watch = world.watch({"a": b"poison", "b": b"b"})
    world.settle()
    use("Picky")
    watch = world.sync(watch)
    assert set(world.copy(watch)) == {"a", "b"}
    use()
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_failing_file_stays_listed_when_another_gets_its_path(world: World, use, settings) -> None:
    settings.RECORD_BATCH = 1
    use("Swap", "Picky")
    repo, watch = world.watch({"a": b"poison", "b": b"fine"})
    watch = world.sync(watch)
    assert world.copy(watch) == {"a": sha(b"fine")}
    assert list(watch.failures.values_list("path", "cause")) == [("a", "transform")]
    watch = world.sync(watch)
    assert list(watch.failures.values_list("path", "cause")) == [("a", "transform")]
    repo.commit({"a": b"fixed"})
    world.settle()
    assert_in_sync(world, repo, watch)


@pytest.mark.parametrize(("retained", "other"), [("a", "a/b"), ("a/b", "a")], ids=["below", "above"])
def test_paths_above_or_below_a_retained_file_are_blocked(world: World, use, retained: str, other: str) -> None:
    use("ByContent", "Picky")
    repo, watch = world.watch({"1": f"path: {retained}\nfine".encode(), "2": b"x"})
    world.settle()
    repo.commit({"1": f"path: {retained}\npoison".encode(), "2": f"path: {other}\nx".encode()})
    watch = world.sync(watch)
    assert world.copy(watch) == {retained: sha(f"path: {retained}\nfine".encode())}
    assert set(watch.failures.values_list("path", "cause")) == {("1", "transform"), (other, "blocked")}
    assert "whose transform failed" in watch.failures.get(cause="blocked").message
    repo.commit({"1": f"path: {retained}\nfine".encode(), "2": b"x"})
    world.settle()
    assert_in_sync(world, repo, watch)
    repo.commit({"1": b"elsewhere", "2": f"path: {other}\nx".encode()})
    world.settle()
    assert_in_sync(world, repo, watch)


def test_delete_and_transform_of_one_path_fail_together(world: World, use) -> None:
    use("ByContent", "Picky")
    repo, watch = world.watch({"source": b"path: target\n", "z": b"z"})
    world.settle()
    repo.commit({"source": None, "target": b"poison", "z": b"new z"})
    world.answer(lambda note: Answer(500) if note.kind == "delete" else None)
    watch = world.sync(watch)
    listed = watch.failures.get()
    assert (watch.lease_until, listed.path, listed.cause) == (None, "target", "transform")
    assert world.copy(watch)["z"] == sha(b"new z")
    world.answer(None)
    watch = world.sync(watch)
    assert (set(world.copy(watch)), watch.failures.get().cause) == ({"z"}, "transform")
    repo.commit({"target": b"good"})
    world.settle()
    assert_in_sync(world, repo, watch)


def test_colliding_files(world: World, use) -> None:
    """The first by source path is sent, the others are listed."""
    use("Flatten")
    repo, watch = world.watch({"b/x": b"from b", "c/x": b"from c", "c/y": b"y"})
    world.settle()
    assert world.copy(watch)["flat/x"] == sha(b"from b")
    listed = watch.failures.get()
    assert (listed.path, listed.kind, listed.cause) == ("c/x", "skipped", "collision")
    assert listed.message == "Its transforms give it the path flat/x, which b/x already has."
    assert left_out(watch) == {"collision": 1}
    repo.commit({"a/x": b"from a"})  # now the first by source path
    world.settle()
    assert world.copy(watch)["flat/x"] == sha(b"from a")
    assert left_out(watch) == {"collision": 2}
    assert_in_sync(world, repo, watch)
    repo.commit({"a/x": None, "b/x": None})
    world.settle()
    assert world.copy(watch)["flat/x"] == sha(b"from c")
    assert not watch.failures.exists()
    assert_in_sync(world, repo, watch)


def test_file_below_another_file_is_a_collision(world: World, use) -> None:
    use("ByContent")
    repo, watch = world.watch({"1": b"path: dir\n", "2": b"path: dir-a\n", "3": b"path: dir/x\n", "4": b"path: dir0\n"})
    world.settle()
    assert set(world.copy(watch)) == {"dir", "dir-a", "dir0"}
    assert list(watch.failures.values_list("path", "cause")) == [("3", "collision")]
    repo.commit({"1": None})
    world.settle()
    assert set(world.copy(watch)) == {"dir-a", "dir/x", "dir0"}
    assert_in_sync(world, repo, watch)


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
def test_transformed_path_must_be_eligible(world: World, use, target: bytes, cause: str) -> None:
    use("ByContent")
    _, watch = world.watch({"bad": b"path: %b\nx" % target, "good": b"x"})
    world.settle()
    assert set(world.copy(watch)) == {"good"}
    assert list(watch.failures.values_list("path", "cause")) == [("bad", cause)]
    assert left_out(watch) == {cause: 1}


def test_transformed_size_decides_about_chunks(world: World, use, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = 200, 150
    use("Expand")
    repo, watch = world.watch({"grows": b"abc", "nul": b"\0x", "empty": b""})
    world.settle()
    assert_in_sync(world, repo, watch)
    assert len([record for record in world.requests("create") if record.path == "grows"]) > 1
    use("Shorten")
    repo.commit({"large": b"0123456789" * 100})
    world.settle()
    assert_in_sync(world, repo, watch)
    assert len([record for record in world.requests() if record.path == "large"]) == 1


@pytest.mark.parametrize("was_sent", [False, True])
def test_transformed_file_over_the_limit_is_listed(world: World, use, settings, was_sent: bool) -> None:
    use("Expand")
    _, watch = world.watch({"grows": b"abcdef", "fits": b"abc"})
    if was_sent:
        world.settle()
    settings.MAX_FILE_BYTES = 300
    world.settle()
    assert set(world.copy(watch)) == {"fits"}
    listed = watch.failures.get()
    assert (listed.path, listed.cause) == ("grows", "too_large")
    assert listed.message.startswith("After its transforms: The file's 600 bytes")


@pytest.mark.parametrize("threshold", [50, 1_000_000], ids=["in chunks", "whole"])
def test_nondeterministic_transform(world: World, use, settings, threshold: int) -> None:
    """What is sent is always what was announced."""
    settings.CHUNK_THRESHOLD_BYTES, settings.CHUNK_SIZE_BYTES = threshold, 50
    use("Nondeterministic")
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


def test_transform_with_a_wrong_result_fails_its_file(world: World, use) -> None:
    use("Nonsense")
    _, watch = world.watch({"a": b"a"})
    watch = world.sync(watch)
    assert watch.failures.get().message == "Transform nonsense did not return a SourceFile or None."


def test_transforms_with_a_killed_worker_and_a_refusing_client(world: World, use) -> None:
    use("DropDrafts", "Flatten", "Shout")
    repo, watch = world.watch({f"{n}/{n}": b"text %d" % n for n in range(6)} | {"drafts/x": b"x"})
    kill_worker(world, watch, lambda note: note.path == "flat/3")
    repo.commit({"2/2": None, "5/5": b"other", "drafts/x": None, "x": b"x"})
    world.answer(refusing("flat/1", "flat/2"))
    world.sync(watch)
    world.answer(None)
    world.settle()
    assert_in_sync(world, repo, watch)


def test_unusable_transforms_fail_the_sync(world: World, use) -> None:
    use("Missing")
    _, watch = world.watch({"a": b"a"})
    watch = world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "transform")
    assert watch.last_error.startswith("FILE_TRANSFORMS names 'tests.support.transforms.Missing', which cannot be")
    assert world.requests() == []


def test_rows_of_one_source_path_may_be_on_two_pages(world: World, use, monkeypatch) -> None:
    """It has two rows while the app refuses the delete of its earlier path."""
    use("Flatten")
    _, watch = world.watch({"a/1": b"1", "b/2": b"2"})
    world.settle()
    Delivery.objects.update(source_path="a/1")
    monkeypatch.setattr(delivery_rows, "PAGE", 1)
    assert [row.path for row in delivery_rows.rows_by_source(watch.pk)] == ["flat/1", "flat/2"]


def test_lease_is_extended_while_rows_are_read(world: World, use, monkeypatch) -> None:
    """The tree has been read completely by then."""
    use("Flatten")
    repo, watch = world.watch({f"{n}/{n}": b"%d" % n for n in range(5)})
    world.settle()
    monkeypatch.setattr(planner, "_TICK_EVERY", 1)
    ticks: list[None] = []
    mirror = repositories.mirror_of(watch.repository)
    head = Head(repo.head, "main")
    rules = delivery_rows.delivery_rules_of(watch)
    with mirror.blobs() as reader:
        plan = planner.full_plan(head, watch, rules, reader, lambda: ticks.append(None))
    plan.close()
    assert len(ticks) == 21  # six folders that are listed, five of them read together before, five files, five rows


def test_lease_is_extended_while_files_are_transformed_to_be_sent(world: World, use) -> None:
    use("Flatten")
    repo, watch = world.watch({f"{n}/{n}": b"%d" % n for n in range(5)})
    world.settle()
    mirror = repositories.mirror_of(watch.repository)
    watch.resend_floor = watch.generation + 1  # every file
    rules = delivery_rows.delivery_rules_of(watch)
    ticks: list[None] = []
    with mirror.blobs() as reader:
        plan = planner.full_plan(Head(repo.head, "main"), watch, rules, reader, lambda: None)
        changes = list(plan.phase("create"))
        Contents(mirror, reader, rules).read(changes, lambda: ticks.append(None), lambda *_: None)
    plan.close()
    assert len(ticks) == len(changes) == 5
