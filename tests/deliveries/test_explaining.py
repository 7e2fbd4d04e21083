"""Explanations of single files, compared with what really happened."""

import os
import shutil
from pathlib import Path

import pytest
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, Outcome, SyncPause
from deliveries_app.reports.file_explanation import Explanation, explain
from deliveries_app.services import resend_files, resync_single
from deliveries_app.services.watch_settings import change_watch
from docora.text import lower_first
from repositories_app import services as repositories
from tests.support.git import Entry
from tests.support.histories import kill_worker, refusing, sha
from tests.support.raw_objects import FILE, FOLDER, blob, serve, tree
from tests.support.transforms import use_transforms
from tests.support.world import World

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n"
IGNORE = b"# not needed\n*.log\n\n/build/\n!keep.log\n"


def explain_path(watch: AppRepository, path: str) -> Explanation:
    watch.refresh_from_db()
    return explain(Actor.command(), watch, path)


def test_delivered_file(world: World) -> None:
    repo, watch = world.watch({"docs/a.md": b"hello"})
    world.settle()
    why = explain_path(watch, "docs/a.md")
    assert why.decision == ("delivered", "Delivered: the client has acknowledged the current version.")
    assert why.found.commit == repo.head
    assert why.found.entry
    assert (why.found.entry.mode, why.found.entry.size) == ("100644", 5)
    assert why.row
    assert (why.row.sha, why.row.acknowledged_sha, why.row.state(watch.resend_floor)) == (
        sha(b"hello"),
        sha(b"hello"),
        "acknowledged",
    )
    assert (why.failure, why.next_attempt) == (None, None)


def test_file_whose_resend_was_requested(world: World) -> None:
    """The client has acknowledged it. It counts as sent and not acknowledged only once it is announced again."""
    _, watch = world.watch({"a.md": b"hello"})
    world.settle()
    resend_files(Actor.command(), watch, ["a.md"])
    decision = explain_path(watch, "a.md").decision
    assert decision == ("in doubt", "The client acknowledged it, but the next sync sends it again.")
    kill_worker(world, watch, lambda note: note.path == "a.md")
    assert explain_path(watch, "a.md").decision.message.startswith("Sent, but not acknowledged by the client.")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("debug.log", 'Not sent: line 2 of .docoraignore ("*.log") ignores it.'),
        ("build/x/keep.log", 'Not sent: line 4 of .docoraignore ("/build/") ignores the directory build.'),
    ],
)
def test_ignored_file(world: World, path: str, text: str) -> None:
    _, watch = world.watch({".docoraignore": IGNORE, "debug.log": b"1", "build/x/keep.log": b"2", "keep.log": b"3"})
    world.settle()
    why = explain_path(watch, path)
    assert why.decision == ("left out", text)
    assert explain_path(watch, "keep.log").decision.state == "delivered"


@pytest.mark.parametrize("patterns", [{"include_patterns": "/*/*/*"}, {"exclude_patterns": "*a*b"}, {}])
def test_patterns_that_take_too_long(world: World, monkeypatch: pytest.MonkeyPatch, patterns: dict[str, str]) -> None:
    """A thousand patterns with many stars and a file 500 folders deep kept a web process busy for a minute."""
    _, watch = world.watch({".docoraignore": b"*a*b\n", "x/y/z.md": b"1"})
    world.settle()
    change_watch(Actor.command(), watch, **patterns)
    monkeypatch.setattr("deliveries_app.planning.ignore_rules._ALLOWED_SECONDS", -1.0)
    state, message = explain_path(watch, "x/y/z.md").decision
    assert state in {"left out", "waiting"}
    assert message.startswith("Not sent: matching the patterns takes too long.")


def test_slow_git(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    slow = tmp_path / "slow/git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
    monkeypatch.setattr("deliveries_app.planning.file_lookup.SECONDS", 0.1)
    found = explain_path(watch, "a.md").found
    assert found.unknown == "Git is too slow on this server right now. Try again shortly."


def test_ignored_file_that_the_client_still_has(world: World) -> None:
    _, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.settle()
    change_watch(Actor.command(), watch, ignore_patterns="# not for them\nb.*")
    why = explain_path(watch, "b.md")
    assert why.decision.state == "waiting"
    assert why.decision.message.startswith(
        'Not sent: line 2 of the watch\'s patterns ("b.*") ignores it. The client still'
    )
    world.answer(refusing("b.md"))
    world.sync(watch)
    why = explain_path(watch, "b.md")
    assert why.decision.state == "failed"
    assert "because its deletion failed: the app returned HTTP 500." in why.decision.message
    world.answer(None)
    world.sync(watch)
    assert explain_path(watch, "b.md").decision.state == "left out"


def test_ineligible_entries_and_a_directory(world: World, settings) -> None:
    settings.MAX_FILE_BYTES = 1000
    files = {
        "link": Entry.symlink("a.md"),
        "module": Entry.submodule("1" * 40),
        "large": b"x" * 1001,
        "d/" * 600 + "deep": b"1",
        os.fsdecode(b"caf\xe9.md"): b"1",
        "docs/a.md": b"1",
    }
    repo, watch = world.watch(files)
    world.settle()
    for path, text in {
        "link": "Not sent: symbolic links are not sent.",
        "module": "Not sent: submodules are not sent. Watch the submodule's own repository instead.",
        "large": "Not sent: the file's 1,001 bytes exceed MAX_FILE_BYTES (1,000).",
        "d/" * 600 + "deep": "Not sent: paths longer than 1024 bytes are not sent.",
        r"caf\xe9.md": "Not sent: the path is not valid UTF-8, so JSON can't represent it.",
    }.items():
        assert explain_path(watch, path).decision == ("left out", text)
    assert explain_path(watch, "docs").decision == ("absent", "This is a directory. Enter the path of a file.")
    folder = tree(repo, (FOLDER, b".GIT", tree(repo, (FILE, b"config", blob(repo)))))  # git doesn't commit such a path
    serve(repo, tree(repo, (FOLDER, b"docs", folder)))
    world.sync(watch)
    text = "Not sent: the path leads outside the client's folder or into its .git directory."
    assert explain_path(watch, "docs/.GIT/config").decision == ("left out", text)


def test_lfs_pointer(world: World) -> None:
    _, watch = world.watch({"film.mp4": POINTER % 1})
    world.settle()
    why = explain_path(watch, "film.mp4")
    assert (why.decision.state, why.found.remark) == ("delivered", "lfs_pointer")


def test_refused_file(world: World) -> None:
    _, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.answer(refusing("b.md"))
    world.sync(watch)
    world.sync(watch)
    why = explain_path(watch, "b.md")
    assert why.decision == ("failed", "Not delivered: the app returned HTTP 500.")
    assert why.failure
    assert (why.failure.status_code, why.failure.attempts) == (500, 2)
    assert why.row
    assert why.row.state(watch.resend_floor) == "unconfirmed"
    assert why.next_attempt
    assert why.next_attempt.message.startswith("Next try")
    assert explain_path(watch, "a.md").decision.state == "delivered"


def test_file_deleted_upstream(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.settle()
    repo.commit({"b.md": None})
    assert explain_path(watch, "b.md").decision.state == "delivered"  # in the last synced commit
    world.answer(refusing("b.md"))
    world.check()
    world.sync(watch)
    text = "Deleted in the repository, but the deletion failed at the client: the app returned HTTP 500."
    assert explain_path(watch, "b.md").decision == ("failed", text)
    world.answer(None)
    world.settle()
    world.sync(watch)
    why = explain_path(watch, "b.md")
    assert why.decision.state == "absent"
    assert (why.found.entry, why.row, why.failure) == (None, None, None)


UNKNOWN = ["nothing.md", "/a.md", "./a.md", "A.md", "a.md/", "a.md/b", "docs//a", "*", "\\x", "'; --"]
MALFORMED = ["a\0b", "\ud800", "x" * 100_000, "a/" * 3000, "\n", " "]


def test_unknown_and_malformed_paths_are_absent(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    for path in (*UNKNOWN, *MALFORMED):
        assert explain_path(watch, path).decision.state == "absent", path[:14]


def test_unusual_names(world: World) -> None:
    odd = [
        "two words.md",
        " lead",
        "tab\there",
        "new\nline",
        "a%20b",
        "q?.md",
        "#x",
        "é/ü.md",
        r"back\x5cslash",
        ":(top)x",
    ]
    _, watch = world.watch({name: name.encode() for name in odd})
    world.settle()
    assert {name: explain_path(watch, name).decision.state for name in odd} == dict.fromkeys(odd, "delivered")


def test_cleared_record(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    resync_single(Actor.command(), watch)
    why = explain_path(watch, "a.md")
    assert why.decision.state == "cleared"
    assert why.row
    assert (why.row.state(watch.resend_floor), why.row.acknowledged_sha) == ("cleared", sha(b"1"))
    assert why.row.generation < watch.resend_floor
    assert why.next_attempt
    assert why.next_attempt.message == "Next sync when a worker is free"
    world.sync(watch)
    assert explain_path(watch, "a.md").decision.state == "delivered"


def test_file_announced_before_a_worker_died_is_in_doubt(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    kill_worker(world, watch, lambda note: note.path == "a.md")
    why = explain_path(watch, "a.md")
    assert why.decision.state == "in doubt"
    assert why.found.commit == repo.head  # the commit of the unfinished run


def test_commit_being_synced_is_used(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1", "b.md": b"1"})
    world.settle()
    repo.commit({"a.md": b"2", "b.md": b"2"})
    world.check()
    kill_worker(world, watch, lambda note: note.path == "a.md")
    Delivery.objects.filter(watch=watch, path="b.md").update(acknowledged=True, source_key="of the first commit")
    why = explain_path(watch, "b.md")
    assert why.found.commit == repo.head
    assert why.decision == ("waiting", "The client has an older version. The next sync sends the current one.")


def test_commit_of_a_failed_run_is_not_used_after_a_sync(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    world.settle()
    watch.runs.create(generation=2, ended_at=timezone.now(), commit_sha="1" * 40, outcome=Outcome.FAILED)
    assert explain_path(watch, "a.md").found.commit == repo.head


def test_watch_that_has_never_synced(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    why = explain_path(watch, "a.md")
    assert why.decision.state == "unknown"
    assert "hasn't been synced yet" in why.decision.message


def test_missing_mirror(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    directory = repositories.mirror_of(watch.repository).directory
    shutil.rmtree(directory)
    why = explain_path(watch, "a.md")
    assert why.decision.state == "delivered"
    assert "this server has no mirror" in why.decision.message
    assert explain_path(watch, "b.md").decision.state == "unknown"
    assert not directory.exists()


def test_missing_commit(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    AppRepository.objects.update(last_commit="1" * 40)
    assert explain_path(watch, "a.md").found.unknown == "The mirror on this server doesn't contain this commit."


def test_unusable_ignore_file(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    world.settle()
    repo.commit({".docoraignore": b"x\n" * 1001, "b.md": b"1"})
    world.check()
    world.sync(watch)
    watch.refresh_from_db()
    AppRepository.objects.update(last_commit=repo.head)
    assert "more than 1,000" in explain_path(watch, "b.md").decision.message


def test_dropping_and_failing_transforms_are_named(world: World, settings) -> None:
    use_transforms(settings, "Shout", "DropDrafts", "Flatten", "Picky")
    files = {"drafts/a.md": b"1", "docs/b.md": b"b", "docs/c.md": b"poison", "z/b.md": b"2"}
    _, watch = world.watch(files)
    world.sync(watch)
    assert explain_path(watch, "drafts/a.md").decision == ("left out", "Not sent: the transform drop-drafts drops it.")
    why = explain_path(watch, "docs/b.md")
    assert (why.decision.state, why.found.sent_as) == ("delivered", "flat/b.md")
    assert why.row
    assert (why.row.path, why.row.sha) == ("flat/b.md", sha(b"B"))
    assert explain_path(watch, "flat/b.md").made_from == "docs/b.md"
    assert "which docs/b.md already has" in explain_path(watch, "z/b.md").decision.message
    use_transforms(settings, "Picky")
    _, other = world.watch({"c.md": b"poison"}, name="acme/other")
    world.sync(other)
    why = explain_path(other, "c.md")
    assert why.decision.state == "failed"
    assert "transform picky failed: ValueError. The client keeps what it has" in why.decision.message
    assert why.failure
    use_transforms(settings, "ByContent")
    renamed = {"bad": b"path: .git/config\nx", "large": b"path: named.md\n" + b"x" * 2000}
    _, last = world.watch(renamed, name="acme/renamed")
    world.sync(last)
    why = explain_path(last, "bad")
    assert (why.decision.state, why.found.sent_as) == ("left out", "")
    why = explain_path(last, "large")
    assert (why.decision.state, why.found.sent_as) == ("delivered", "named.md")
    use_transforms(settings, "Missing")
    assert "Missing', which cannot be imported" in explain_path(other, "c.md").decision.message


def test_file_waiting_for_a_pause(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    resync_single(Actor.command(), watch)
    world.app.paused = True
    world.app.save()
    watch = AppRepository.objects.select_related("app", "repository").get(pk=watch.pk)
    why = explain(Actor.command(), watch, "a.md")
    assert why.next_attempt
    assert why.next_attempt.message == "Continues when the app is resumed"
    SyncPause.objects.create(paused_by="anna")
    why = explain(Actor.command(), watch, "a.md")
    assert why.next_attempt
    assert why.next_attempt.message == "Continues when syncing is resumed"


def test_explaining_needs_permission(world: World, django_user_model) -> None:
    _, watch = world.watch({"a.md": b"1"})
    user = django_user_model.objects.create_user("mallory", is_staff=True)
    with pytest.raises(PermissionDenied):
        explain(Actor.of_user(user), watch, "a.md")
    other = world.add_app("Search")
    with pytest.raises(PermissionDenied):
        explain(Actor.of_app(other), watch, "a.md")


def test_explaining_is_read_only(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    world.settle()
    repo.commit({"a.md": b"2"})
    fetches, requests, before = (
        len(world.git.server.requests),
        len(world.requests()),
        AppRepository.objects.values().get(),
    )
    assert explain_path(watch, "a.md").decision.state == "delivered"
    assert (len(world.git.server.requests), len(world.requests())) == (fetches, requests)
    assert AppRepository.objects.values().get() == before


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Longer than 1,024 bytes.", "longer than 1,024 bytes."),
        ("A submodule is a separate repository.", "a submodule is a separate repository."),
        ("JSON can't represent the path.", "JSON can't represent the path."),
        ("", ""),
    ],
)
def test_reason_follows_a_colon(message: str, expected: str) -> None:
    assert lower_first(message) == expected
