"""Why was this file (not) sent? Asked of a real world, the answer is what really happened."""

import os
import shutil

import pytest
from django.core.exceptions import PermissionDenied

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, SyncPause
from deliveries_app.reports.file_explanation import Explanation, explain
from deliveries_app.services import resync_single
from deliveries_app.services.watch_settings import set_ignore_patterns
from repositories_app import services as repositories
from tests.support.git import Entry
from tests.support.histories import kill_worker, refusing, sha
from tests.support.transforms import put_into_use
from tests.support.world import World

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n"
IGNORE = b"# what nobody needs\n*.log\n\n/build/\n!keep.log\n"


def ask(watch: AppRepository, path: str) -> Explanation:
    watch.refresh_from_db()
    return explain(Actor.command(), watch, path)


def test_a_file_that_was_delivered(world: World) -> None:
    repo, watch = world.watch({"docs/a.md": b"hello"})
    world.settle()
    why = ask(watch, "docs/a.md")
    assert why.verdict == ("delivered", "Delivered: the client has acknowledged exactly what the repository has.")
    assert why.found.commit == repo.head
    assert why.found.entry
    assert (why.found.entry.mode, why.found.entry.size) == ("100644", 5)
    assert why.row
    assert (why.row.sha, why.row.acknowledged_sha, why.row_state) == (sha(b"hello"), sha(b"hello"), "delivered")
    assert (why.failure, why.tried_next) == (None, None)


@pytest.mark.parametrize(
    ("path", "line", "words"),
    [
        ("debug.log", 2, 'Not sent: line 2 of .docoraignore ("*.log") ignores it.'),
        ("build/x/keep.log", 4, 'Not sent: line 4 of .docoraignore ("/build/") ignores the directory build.'),
    ],
)
def test_a_file_that_a_line_ignores(world: World, path: str, line: int, words: str) -> None:
    _, watch = world.watch({".docoraignore": IGNORE, "debug.log": b"1", "build/x/keep.log": b"2", "keep.log": b"3"})
    world.settle()
    why = ask(watch, path)
    assert why.verdict == ("left out", words)
    assert why.found.ignored_by
    assert (why.found.ignored_by.in_file, why.found.ignored_by.number) == (True, line)
    assert ask(watch, "keep.log").verdict.state == "delivered"


def test_a_file_that_the_watch_ignores_and_the_client_still_has(world: World) -> None:
    _, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.settle()
    set_ignore_patterns(Actor.command(), watch, "# not for them\nb.*")
    why = ask(watch, "b.md")
    assert why.verdict.state == "waiting"
    assert why.verdict.words.startswith(
        'Not sent: line 2 of the watch\'s patterns ("b.*") ignores it. The client still'
    )
    world.answer(refusing("b.md"))
    world.sync(watch)
    why = ask(watch, "b.md")
    assert why.verdict.state == "failed"
    assert "has not accepted its deletion: the app answered 500." in why.verdict.words
    world.answer(None)
    world.sync(watch)
    assert ask(watch, "b.md").verdict.state == "left out"


def test_what_is_no_file_or_no_file_for_a_client(world: World, settings) -> None:
    settings.MAX_FILE_BYTES = 1000
    files = {
        "link": Entry.symlink("a.md"),
        "module": Entry.submodule("1" * 40),
        "large": b"x" * 1001,
        "d/" * 600 + "deep": b"1",
        "docs/.GIT/config": b"1",
        os.fsdecode(b"caf\xe9.md"): b"1",
        "docs/a.md": b"1",
    }
    _, watch = world.watch(files)
    world.settle()
    for path, words in {
        "link": "Not sent: symbolic links are not sent.",
        "module": "Not sent: submodules are not sent; watch their repository instead.",
        "large": "Not sent: 1,001 bytes are more than MAX_FILE_BYTES (1,000).",
        "d/" * 600 + "deep": "Not sent: paths over 1024 bytes are not sent.",
        "docs/.GIT/config": "Not sent: the path leads out of the client's folder, or into its .git.",
        r"caf\xe9.md": "Not sent: the path is not UTF-8 and cannot be written in JSON.",
    }.items():
        assert ask(watch, path).verdict == ("left out", words)
    assert ask(watch, "docs").verdict == ("absent", "This is a directory. Ask for one of the files in it.")


def test_a_pointer_of_git_lfs_is_told_as_what_it_is(world: World) -> None:
    _, watch = world.watch({"film.mp4": POINTER % 1})
    world.settle()
    why = ask(watch, "film.mp4")
    assert (why.verdict.state, why.found.remark) == ("delivered", "lfs_pointer")


def test_a_file_that_the_app_refuses(world: World) -> None:
    _, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.answer(refusing("b.md"))
    world.sync(watch)
    world.sync(watch)
    why = ask(watch, "b.md")
    assert why.verdict == ("failed", "Not delivered: the app answered 500.")
    assert why.failure
    assert (why.failure.status_code, why.failure.attempts) == (500, 2)
    assert why.row_state == "in doubt"
    assert why.tried_next
    assert why.tried_next.words.startswith("next try")
    assert ask(watch, "a.md").verdict.state == "delivered"


def test_a_file_that_was_deleted_upstream(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1", "b.md": b"2"})
    world.settle()
    repo.commit({"b.md": None})
    assert ask(watch, "b.md").verdict.state == "delivered"  # of the commit that was synced last
    world.answer(refusing("b.md"))
    world.check()
    world.sync(watch)
    words = "Deleted in the repository, and the client has not accepted that: the app answered 500."
    assert ask(watch, "b.md").verdict == ("failed", words)
    world.answer(None)
    world.settle()
    world.sync(watch)
    why = ask(watch, "b.md")
    assert why.verdict.state == "absent"
    assert (why.found.entry, why.row, why.failure) == (None, None, None)


@pytest.mark.parametrize(
    "path", ["nothing.md", "/a.md", "./a.md", "A.md", "a.md/", "a.md/b", "docs//a", "*", "\\x", "'; --"]
)
def test_a_path_that_never_existed(world: World, path: str) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    assert ask(watch, path).verdict.state == "absent"


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 100_000, "a/" * 3000, "\n", " "])
def test_a_path_that_is_none_is_answered_all_the_same(world: World, path: str) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    assert ask(watch, path).verdict.state == "absent"


def test_odd_names_are_found(world: World) -> None:
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
    assert {name: ask(watch, name).verdict.state for name in odd} == dict.fromkeys(odd, "delivered")


def test_a_record_that_a_resync_cleared(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    resync_single(Actor.command(), watch)
    why = ask(watch, "a.md")
    assert why.verdict.state == "cleared"
    assert why.row
    assert (why.row_state, why.row.acknowledged_sha) == ("cleared", sha(b"1"))
    assert why.row.generation < watch.resend_floor
    assert why.tried_next
    assert why.tried_next.words == "next sync as soon as a worker is free"
    world.sync(watch)
    assert ask(watch, "a.md").verdict.state == "delivered"


def test_what_was_announced_before_a_worker_died_is_in_doubt(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    kill_worker(world, watch, lambda note: note.path == "a.md")
    why = ask(watch, "a.md")
    assert why.verdict.state == "in doubt"
    assert why.found.commit == repo.head  # the run is not at its end, and says what it is at


def test_a_newer_commit_is_spoken_of_while_it_is_sent(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1", "b.md": b"1"})
    world.settle()
    repo.commit({"a.md": b"2", "b.md": b"2"})
    world.check()
    kill_worker(world, watch, lambda note: note.path == "a.md")
    Delivery.objects.filter(watch=watch, path="b.md").update(acknowledged=True, source_key="of the first commit")
    why = ask(watch, "b.md")
    assert why.found.commit == repo.head
    assert why.verdict == ("waiting", "The client has an older content; the next sync sends what the repository has.")


def test_what_was_not_synced_yet_says_so(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    why = ask(watch, "a.md")
    assert why.verdict.state == "unknown"
    assert "not been synced yet" in why.verdict.words


def test_a_machine_without_the_mirror_tells_what_the_rows_say(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    directory = repositories.mirror_of(watch.repository).directory
    shutil.rmtree(directory)
    why = ask(watch, "a.md")
    assert why.verdict.state == "delivered"
    assert "this machine has no mirror" in why.verdict.words
    assert ask(watch, "b.md").verdict.state == "unknown"
    assert not directory.exists()


def test_a_commit_that_is_not_in_the_mirror_is_told(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    AppRepository.objects.update(last_commit="1" * 40)
    assert ask(watch, "a.md").found.unknown == "The mirror on this machine does not hold this commit."


def test_rules_that_stop_everything_are_the_reason(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    world.settle()
    repo.commit({".docoraignore": b"x\n" * 1001, "b.md": b"1"})
    world.check()
    world.sync(watch)
    watch.refresh_from_db()
    AppRepository.objects.update(last_commit=repo.head)
    assert "more than 1,000" in ask(watch, "b.md").verdict.words


def test_the_transform_that_drops_a_file_is_named(world: World, settings) -> None:
    put_into_use(settings, "Shout", "DropDrafts", "Flatten", "Picky")
    files = {"drafts/a.md": b"1", "docs/b.md": b"b", "docs/c.md": b"poison", "z/b.md": b"2"}
    _, watch = world.watch(files)
    world.sync(watch)
    assert ask(watch, "drafts/a.md").verdict == ("left out", "Not sent: the transform drop-drafts drops it.")
    why = ask(watch, "docs/b.md")
    assert (why.verdict.state, why.found.sent_as) == ("delivered", "flat/b.md")
    assert why.row
    assert (why.row.path, why.row.sha) == ("flat/b.md", sha(b"B"))
    assert ask(watch, "flat/b.md").made_from == "docs/b.md"
    assert "which docs/b.md has already" in ask(watch, "z/b.md").verdict.words
    put_into_use(settings, "Picky")
    _, other = world.watch({"c.md": b"poison"}, name="acme/other")
    world.sync(other)
    why = ask(other, "c.md")
    assert why.verdict.state == "failed"
    assert "transform picky failed: ValueError" in why.verdict.words
    assert why.failure


def test_what_it_waits_for_is_told(world: World) -> None:
    _, watch = world.watch({"a.md": b"1"})
    world.settle()
    resync_single(Actor.command(), watch)
    world.app.paused = True
    world.app.save()
    watch = AppRepository.objects.select_related("app", "repository").get(pk=watch.pk)
    why = explain(Actor.command(), watch, "a.md")
    assert why.tried_next
    assert why.tried_next.words == "waits until the app is resumed"
    SyncPause.objects.create(paused_by="anna")
    why = explain(Actor.command(), watch, "a.md")
    assert why.tried_next
    assert why.tried_next.words == "waits until syncing is resumed"


def test_asking_needs_the_right_to_see_watched_repositories(world: World, django_user_model) -> None:
    _, watch = world.watch({"a.md": b"1"})
    nobody = django_user_model.objects.create_user("mallory", is_staff=True)
    with pytest.raises(PermissionDenied):
        explain(Actor.of_user(nobody), watch, "a.md")
    other = world.add_app("Search")
    with pytest.raises(PermissionDenied):
        explain(Actor.of_app(other), watch, "a.md")


def test_asking_changes_nothing_and_fetches_nothing(world: World) -> None:
    repo, watch = world.watch({"a.md": b"1"})
    world.settle()
    repo.commit({"a.md": b"2"})
    asked, told, before = len(world.git.server.requests), len(world.requests()), AppRepository.objects.values().get()
    assert ask(watch, "a.md").verdict.state == "delivered"
    assert (len(world.git.server.requests), len(world.requests())) == (asked, told)
    assert AppRepository.objects.values().get() == before
