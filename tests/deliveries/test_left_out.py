"""Files that are left out, or sent with a remark. Every one is counted, and most are listed."""

import ast
import re
from pathlib import Path

import pytest

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, FailureKind, Status
from deliveries_app.planning import eligibility, plan
from deliveries_app.planning.eligibility import REMARKS, UNLISTED, Skipped, reason_to_skip
from deliveries_app.planning.paths import is_unsafe
from deliveries_app.reports.help_texts import LEFT_OUT
from deliveries_app.services import resync_single
from deliveries_app.services.watch_settings import change_watch
from repositories_app.mirror.tree import Entry as TreeEntry
from tests.support.git import Entry, Repo, git
from tests.support.histories import assert_promise_kept, compare_plans, kill_worker, refusing
from tests.support.raw_objects import FILE, FOLDER, blob, serve, tree
from tests.support.world import World

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n"

UNSAFE = [
    *("/a", "a//b", "a/", ".", "./a", "a/./b", "a/.", "..", "../a", "a/../b", "a/..", "a/.. /b", "a/..  "),
    *(
        "a\\..\\b",
        "..\\a",
        "a/b\\..",
        "\\a",
        "\\\\server\\share",
        "C:/x",
        "c:\\x",
        "nul\0",
        "C:evil.txt",
        "C:..\\x",
        "c:x/y",
        "x:\n",
    ),
    *(
        ".git",
        ".git/config",
        "a/.git",
        "a/.git/hooks/x",
        ".GIT/config",
        ".Git",
        "a/.giT/b",
        ".git ",
        ".git.",
        ".git . ./x",
    ),
    *(
        "git~1",
        "GIT~1/config",
        "a/git~1",
        "git~1. ",
        ".git:x",
        ".git::$INDEX_ALLOCATION",
        ".git::$INDEX_ALLOCATION/config",
    ),
    *(
        "git~1:x",
        "a\\.git\\config",
        "a/.git\\x",
        ".g\u200cit/config",
        "\ufeff.git",
        ".\u202agit",
        ".git\u206f",
        ".gi\u200dt. ",
    ),
]
SAFE = [
    *(
        "a",
        "a/b",
        ".github/workflows/x.yml",
        ".gitignore",
        ".gitattributes",
        ".gitmodules",
        "a.git",
        "a.git/b",
        "git",
        "git/x",
    ),
    *(
        "...",
        "a/.../b",
        "..a",
        "a..",
        "a..b",
        "a/..b",
        ".a",
        "a.",
        "git~2",
        "xgit~1",
        ".gitx",
        ".git~",
        ".git-x",
        "..git",
    ),
    *(
        "a\\b",
        "ab:c",
        "a/C:x",
        "file.txt:stream",
        "C:",
        "é:x",
        "aux.c",
        "con",
        "a/nul.txt",
        "~",
        "~/x",
        " ",
        "a b",
        "-x",
        "é",
        "\u200c",
        "a\u200cb",
        "CON",
        "new\nline",
        "..\n",
        ".git\n",
    ),
]


@pytest.mark.parametrize("path", UNSAFE, ids=ascii)
def test_unsafe_path_is_not_sent(path: str) -> None:
    assert is_unsafe(path.encode())
    skipped = reason_to_skip(TreeEntry(path.encode(), "100644", "A", 1), 1000)
    assert skipped
    assert skipped.cause == "unsafe_path"


@pytest.mark.parametrize("path", SAFE, ids=ascii)
def test_safe_path_is_sent(path: str) -> None:
    assert not is_unsafe(path.encode())
    assert reason_to_skip(TreeEntry(path.encode(), "100644", "A", 1), 1000) is None


def causes_in_code() -> set[str]:
    """Return the causes that `deliveries_app/planning/` passes to `Skipped`, and those that are only counted."""
    folder = Path(eligibility.__file__).parent
    calls = (node for path in folder.glob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    named = (call.args[1] for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) == "Skipped")
    return {node.value for node in named if isinstance(node, ast.Constant)} | UNLISTED


def test_every_cause_has_a_label_and_is_described() -> None:
    """Pages, the API reference and the webhook reference show the labels."""
    causes = causes_in_code() - {"ignore_pattern"}  # not about a file
    assert causes == set(LEFT_OUT) - REMARKS, "add the label to LEFT_OUT in reports/help_texts.py"
    table = re.findall(r"(?m)^\| (`.*?) \|", eligibility.__doc__ or "")
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == causes, "add it to the table in planning/eligibility.py"


# --- At the client ----------------------------------------------------------------------------------------------------


def serve_tree(repo: Repo, names: list[bytes]) -> None:
    """Point HEAD to a tree with exactly these files in the root and in `sub`, even names that git refuses."""
    files = [(FILE, name, blob(repo, b"hostile")) for name in sorted(names)]
    serve(repo, tree(repo, *files, (FOLDER, b"sub", tree(repo, *files))))


def test_hostile_names_are_left_out(world: World) -> None:
    """The other files are sent."""
    repo, watch = world.watch({"a": b"fine"})
    world.settle()
    hostile = [b"..", b".git", b".GIT ", b"git~1", b"a\\..\\..\\b", b".g\xe2\x80\x8cit"]
    serve_tree(repo, [*hostile, b"a", b"fine"])
    world.settle()
    watch.refresh_from_db()
    assert watch.status == Status.SYNCED
    assert set(world.copy(watch)) == {"a", "fine", "sub/a", "sub/fine"}
    assert watch.left_out == {"unsafe_path": 12}
    assert watch.failures.filter(cause="unsafe_path", kind="skipped").count() == 12
    repo.force_push({"a": b"fine"})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert (watch.left_out, watch.failures.count()) == ({}, 0)


def test_upgrade_deletes_nothing_that_is_only_special_on_windows(world: World) -> None:
    """An upgrade changes the rules' fingerprint, so the next plan is a full one."""
    repo, watch = world.watch({"aux.c": b"1", "con": b"2", "lib/nul.txt": b"3", "file.txt:stream": b"4"})
    world.sync(watch)
    repo.commit({"C:evil.txt": b"5"})
    earlier = Delivery.objects.get(watch=watch, path="con")
    earlier.pk, earlier.path = None, "C:evil.txt"  # an earlier version has sent it
    earlier.save()
    AppRepository.objects.filter(pk=watch.pk).update(base_rules="of an earlier version")
    before = len(world.requests())
    watch = world.sync(watch)
    assert [(record.kind, record.path) for record in world.requests()[before:]] == [("delete", "C:evil.txt")]
    assert set(world.copy(watch)) == {"aux.c", "con", "lib/nul.txt", "file.txt:stream"}
    assert watch.failures.get().path == "C:evil.txt"
    assert watch.left_out == {"unsafe_path": 1}


@pytest.mark.parametrize(
    "patterns", [{"ignore_patterns": "*.env"}, {"exclude_patterns": "*.env"}, {"include_patterns": "a\nd"}], ids=str
)
def test_snapshot_totals_prefer_a_watch_without_patterns(world: World, patterns: dict[str, str]) -> None:
    repo, watch = world.watch({"a": b"a", "b.env": b"bb", "c.env": b"cc"})
    world.settle()
    change_watch(Actor.command(), watch, **patterns)
    world.settle()
    snapshot = watch.repository.snapshots.get()
    assert (snapshot.file_count, snapshot.total_bytes) == (3, 5)
    repo.commit({"d": b"d"})
    world.settle()
    assert watch.repository.snapshots.first().file_count == 2, "no watch without patterns has synced this commit"
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    assert watch.repository.snapshots.first().file_count == 4
    watch.refresh_from_db()
    other.refresh_from_db()
    assert (watch.tree_files, other.tree_files) == (2, 4)


@pytest.mark.parametrize("patterns", ["", "*.env"])
def test_snapshot_of_a_restored_commit_is_the_newest(world: World, patterns: str) -> None:
    repo, watch = world.watch({"a": b"a"})
    world.settle()
    change_watch(Actor.command(), watch, ignore_patterns=patterns)
    first = repo.head
    repo.commit({"b": b"b"})
    world.settle()
    git(repo.path, "update-ref", "HEAD", first)
    world.settle()
    newest = watch.repository.snapshots.first()
    assert (newest.commit_sha, newest.file_count) == (first, 1)


def test_causes_are_counted(world: World, settings) -> None:
    """For the run and the watch, by full and fast plans."""
    settings.MAX_FILE_BYTES = 50
    files: dict[str, bytes | Entry] = {
        "link": Entry.symlink("a"),
        "module": Entry.submodule("1" * 40),
        "large": b"x" * 51,
        "latin-\udce9": b"x",
        "long/" * 205 + "x": b"x",
        "a": b"a",
    }
    with compare_plans() as plans:
        repo, watch = world.watch(files)
        world.settle()
        causes = {"symlink": 1, "submodule": 1, "too_large": 1, "not_utf8": 1, "path_too_long": 1}
        watch.refresh_from_db()
        assert watch.left_out == causes
        run = world.runs(watch)[0]
        assert (run.left_out, run.files_skipped) == (causes, 5)
        repo.commit({"link": None, "large": b"small", "link2": Entry.symlink("a"), "link3": Entry.symlink("a")})
        world.settle()
        watch.refresh_from_db()
        causes = {"symlink": 2, "submodule": 1, "not_utf8": 1, "path_too_long": 1}
        assert plans[-1].paths is not None
        assert watch.left_out == causes
        run = world.runs(watch)[0]
        assert (run.left_out, run.files_skipped) == (causes, 5)
        assert set(watch.failures.values_list("cause", flat=True)) == set(causes)


def test_list_is_bounded_and_counts_are_not(world: World, monkeypatch) -> None:
    monkeypatch.setattr(plan, "MAX_SKIPPED_LISTED", 3)
    _, watch = world.watch({f"link-{n}": Entry.symlink("a") for n in range(8)} | {"a": b"a"})
    world.settle()
    watch.refresh_from_db()
    assert watch.failures.count() == 3
    assert watch.left_out == {"symlink": 8}


def test_file_that_is_still_left_out_keeps_its_place_and_has_a_new_time(world: World) -> None:
    repo, watch = world.watch({"link": Entry.symlink("a"), "a": b"a"})
    world.settle()
    listed = watch.failures.get()
    watch.failures.update(first_at=watch.created_at, last_at=watch.created_at)
    resync_single(Actor.command(), watch)
    world.settle()
    again = watch.failures.get()
    assert (again.pk, again.first_at) == (listed.pk, watch.created_at)
    assert again.last_at > listed.last_at
    repo.commit({"link": Entry.submodule("1" * 40)})
    world.settle()
    assert watch.failures.get().cause == "submodule"


def test_failure_of_a_file_that_was_left_out_begins_when_it_first_fails(world: World) -> None:
    repo, watch = world.watch({"link": Entry.symlink("a"), "a": b"a"})
    world.settle()
    listed = watch.failures.get()
    repo.commit({"link": b"now a file"})
    world.answer(refusing("link"))
    world.sync(watch)
    first = watch.failures.get()
    assert (first.kind, first.first_at > listed.last_at) == (FailureKind.FAILED, True)
    world.sync(watch)
    assert watch.failures.get().first_at == first.first_at


def test_listed_paths_are_bounded_in_bytes(monkeypatch) -> None:
    """A tree of a few kilobytes may list gigabytes of paths."""
    monkeypatch.setattr(plan, "_MAX_LISTED_BYTES", 5000)
    made = plan.Plan()
    for number in range(100):
        made.skip(Skipped(b"%04d" % number + b"x" * 996, "path_too_long", ""))
    assert (len(made.skipped), made.left_out["path_too_long"]) == (5, 100)
    made.close()


# --- Git LFS ----------------------------------------------------------------------------------------------------------


def pointers(watch: AppRepository) -> set[str]:
    return set(Delivery.objects.filter(watch=watch, remark="lfs_pointer").values_list("path", flat=True))


def test_lfs_pointer_is_sent_and_remarked(world: World) -> None:
    files = {"film.mp4": POINTER % 1, "song.ogg": POINTER % 2, "about-lfs.md": b"# " + POINTER % 3, "a": b"a"}
    files["not-small"] = POINTER % 4 + b"x" * 1024
    with compare_plans():
        repo, watch = world.watch(files)
        world.settle()
        assert_promise_kept(world, repo, watch)
        assert pointers(watch) == {"film.mp4", "song.ogg"}
        assert watch.left_out == {"lfs_pointer": 2}
        run = world.runs(watch)[0]
        assert (run.left_out, run.files_skipped) == ({"lfs_pointer": 2}, 0)
        repo.commit({"film.mp4": b"the film itself", "song.ogg": None, "new.bin": POINTER % 5})
        world.settle()
        assert_promise_kept(world, repo, watch)
        assert pointers(watch) == {"new.bin"}
        assert watch.left_out == {"lfs_pointer": 1}
        repo.commit({"new.bin": None})
        world.settle()
        watch.refresh_from_db()
        assert watch.left_out == {}


def test_chunked_lfs_pointer_is_remarked(world: World, settings) -> None:
    settings.CHUNK_THRESHOLD_BYTES = settings.CHUNK_SIZE_BYTES = 40
    repo, watch = world.watch({"film.mp4": POINTER % 1})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert watch.left_out == {"lfs_pointer": 1}


def test_lfs_pointer_count_after_crash_failure_and_resync(world: World) -> None:
    repo, watch = world.watch({f"{n}.bin": POINTER % n for n in range(6)})
    kill_worker(world, watch, lambda note: note.path == "3.bin")
    world.answer(refusing("2.bin"))
    world.sync(watch)
    watch.refresh_from_db()
    assert watch.left_out == {"lfs_pointer": 6}
    world.answer(None)
    resync_single(Actor.command(), watch)
    repo.commit({"2.bin": b"whole"})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert watch.left_out == {"lfs_pointer": 5}
