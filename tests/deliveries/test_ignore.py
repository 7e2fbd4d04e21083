"""`.docoraignore` and the watch's own patterns: what they match is not at the client, whatever was there before."""

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied, ValidationError

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.planning.planner import Planned
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watch_settings import MAX_CHARACTERS, MAX_PATTERNS, set_ignore_patterns
from tests.support.git import Entry, Repo
from tests.support.histories import assert_promise_kept, kill_worker, refusing, watching_plans
from tests.support.world import World

FILES = {"readme.md": b"r", "secret.env": b"s", "docs/a.md": b"a", "docs/draft/b.md": b"b", "build/out": b"o"}


@pytest.fixture
def plans():
    with watching_plans() as plans:
        yield plans


def kept(repo: Repo, *ignored: str) -> dict[str, bytes]:
    """HEAD without these paths and what is below them."""
    return {
        path: content
        for path, content in repo.files().items()
        if not any(path == name or path.startswith(f"{name}/") for name in ignored)
    }


def told_since(world: World, count: int) -> list[tuple[str, str]]:
    return [(record.kind, record.path) for record in world.requests()[count:]]


def set_patterns(watch: AppRepository, text: str) -> None:
    set_ignore_patterns(Actor.command(), watch, text)


def test_what_the_file_matches_is_never_sent_and_counted(world: World, plans: list[Planned]) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\n/build/\n"})
    world.settle()
    assert_promise_kept(world, repo, watch, kept(repo, "secret.env", "build"))
    assert ".docoraignore" in world.copy(watch)
    assert watch.left_out == {"ignored": 2}
    assert not watch.failures.exists()
    run = world.runs(watch)[0]
    assert (run.files_skipped, run.left_out) == (2, {"ignored": 2})
    assert watch.tree_files == 4


def test_a_change_of_the_file_deletes_what_is_newly_ignored_and_creates_what_is_not_any_more(
    world: World, plans: list[Planned]
) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"build/\n"})
    world.settle()
    told = len(world.requests())
    repo.commit({".docoraignore": b"docs/draft\n*.env\n"})
    world.settle()
    assert sorted(told_since(world, told)) == [
        ("create", "build/out"),
        ("delete", "docs/draft/b.md"),
        ("delete", "secret.env"),
        ("update", ".docoraignore"),
    ]
    assert plans[-1].among is None
    assert_promise_kept(world, repo, watch, kept(repo, "docs/draft", "secret.env"))
    repo.commit({".docoraignore": None})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert watch.left_out == {}


def test_while_the_file_is_the_same_plans_stay_fast_and_their_numbers_exact(world: World, plans: list[Planned]) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\nbuild/\n", "link": Entry.symlink("x")})
    world.settle()
    steps: list[dict[str, bytes | Entry | None]] = [
        {"build/more": b"1", "x.env": b"2", "docs/new.md": b"3"},
        {"build/out": None, "docs/a.md": b"4"},
        {"link": None, "link2": Entry.symlink("x"), "build/link": Entry.symlink("x")},
        {"secret.env": None, "x.env": None, "build/more": None, "build/link": None},
    ]
    counts = [{"ignored": 4, "symlink": 1}, {"ignored": 3, "symlink": 1}, {"ignored": 4, "symlink": 1}, {"symlink": 1}]
    for step, expected in zip(steps, counts, strict=True):
        repo.commit(step)
        world.settle()
        assert plans[-1].among is not None
        assert_promise_kept(world, repo, watch, kept(repo, "secret.env", "x.env", "build"))
        assert watch.left_out == expected
        assert watch.tree_files == len(world.copy(watch))


def test_an_ignored_file_that_kept_failing_is_not_forgotten(world: World, plans: list[Planned]) -> None:
    repo, watch = world.watch({**FILES})
    world.settle()
    repo.commit({"poison": b"p", "other": b"o"})
    world.answer(refusing("poison", "other"))
    world.sync(watch)
    repo.commit({".docoraignore": b"poison\n"})  # it may have arrived all the same: it is deleted
    world.sync(watch)
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch, kept(repo, "poison"))
    assert watch.left_out == {"ignored": 1}


def test_the_patterns_of_the_watch_come_after_the_file_and_can_take_back_what_it_says(
    world: World, plans: list[Planned]
) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\n*.md\n"})
    other = world.watch_url(repo, app=world.add_app("Search"))
    world.settle()
    set_patterns(watch, "!*.md\r\ndocs/draft/\r\n!secret.env")
    assert AppRepository.objects.due().get() == watch
    world.settle()
    assert_promise_kept(world, repo, watch, kept(repo, "docs/draft"))
    assert set(world.copy(other)) == {".docoraignore", "build/out"}
    set_patterns(watch, "")
    world.settle()
    assert_promise_kept(world, repo, watch, kept(repo, "secret.env", "docs", "readme.md"))


def test_patterns_that_change_while_a_run_is_at_work_hold_in_the_end(world: World, plans: list[Planned]) -> None:
    repo, watch = world.watch(FILES)
    kill_worker(world, watch, lambda note: note.path == "docs/a.md")
    set_patterns(watch, "docs/\nsecret.env")
    world.settle()
    assert_promise_kept(world, repo, watch, kept(repo, "docs", "secret.env"))
    resync_single(Actor.command(), watch)
    world.settle()
    assert_promise_kept(world, repo, watch, kept(repo, "docs", "secret.env"))


def test_only_a_regular_file_in_the_root_counts(world: World, plans: list[Planned]) -> None:
    repo, watch = world.watch(
        {**FILES, "docs/.docoraignore": b"*\n", ".docoraignore": Entry.symlink("docs/.docoraignore")}
    )
    world.settle()
    assert_promise_kept(world, repo, watch)
    listed = dict(watch.failures.values_list("path", "message"))
    assert set(listed) == {".docoraignore", "/.docoraignore"}
    assert listed["/.docoraignore"] == (
        ".docoraignore is a link or a submodule here, which is not read: it ignores nothing."
    )
    repo.commit({".docoraignore": None})
    repo.commit({".docoraignore/x": b"*\n"})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert not watch.failures.exists()


def test_lines_that_match_nothing_are_listed_beside_the_file_itself(world: World, plans: list[Planned]) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\n[a\n"})
    world.answer(refusing(".docoraignore"))
    world.sync(watch)
    assert set(watch.failures.values_list("path", "kind")) == {
        ("/.docoraignore", "skipped"),
        (".docoraignore", "failed"),
    }
    world.answer(None)
    world.settle()
    listed = watch.failures.get()
    assert listed.message == (
        '.docoraignore: Line 2 ("[a") matches nothing, as its bracket is not closed. It is passed over.'
    )
    repo.commit({"docs/a.md": b"new"})
    world.settle()
    assert plans[-1].among is not None
    assert watch.failures.get() == listed
    assert watch.left_out == {"ignored": 1}
    repo.commit({".docoraignore": b"*.env\n"})
    world.settle()
    assert not watch.failures.exists()
    assert_promise_kept(world, repo, watch, kept(repo, "secret.env"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x" * 65_537, "65,537 bytes, more than 65,536"),
        (b"a\n" * 1001, "1,001 patterns, more than 1,000"),
        ("*.env\r\n".encode("utf-16"), "is not text in UTF-8, it holds NUL bytes. Save it as UTF-8; nothing is sent"),
        (b"*.env\n\0\xff\xfe", "is not text in UTF-8"),
    ],
    ids=["too long", "too many", "UTF-16", "binary"],
)
def test_a_file_beyond_the_bounds_stops_everything_rather_than_send_what_should_be_hidden(
    world: World, content: bytes, words: str
) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": content})
    watch = world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "rules")
    assert words in watch.last_error
    assert world.requests() == []
    repo.commit({".docoraignore": b"*.env\n" * 1000})
    world.sync(watch)
    assert_promise_kept(world, repo, watch, kept(repo, "secret.env"))


# --- The service --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n[b\nc", 'Line 2 ("[b") matches nothing, as its bracket is not closed. Correct or remove it.'),
        ("a\nb\0c", "Line 2 holds a control character. Remove it."),
        ("a\x1b[2J", "Line 1 holds a control character. Remove it."),
        ("lone \ud800", "Line 1 holds a control character. Remove it."),
        ("x" * (MAX_CHARACTERS + 1), "The patterns have 10,001 characters; at most 10,000 are accepted."),
        ("a\n" * (MAX_PATTERNS + 1), "These are 501 patterns; at most 500 are accepted."),
    ],
)
def test_patterns_that_are_not_accepted_are_refused_in_words(watches, text: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        set_ignore_patterns(Actor.command(), watches[0], text)
    assert refused.value.messages == [words]
    watches[0].refresh_from_db()
    assert watches[0].ignore_patterns == ""


def test_setting_patterns_is_a_wish_and_recorded_and_setting_the_same_again_is_neither(watches) -> None:
    watch = watches[0]
    anna = User.objects.create_user("anna", password="x", is_staff=True)
    with pytest.raises(PermissionDenied):
        set_ignore_patterns(Actor.of_user(anna), watch, "a")
    anna.user_permissions.add(Permission.objects.get(codename="change_apprepository"))
    actor = Actor.of_user(User.objects.get(pk=anna.pk))
    wanted = watch.request_count
    for expected in (True, False):
        done = set_ignore_patterns(actor, watch, "# comment\r\na\t\n!b\n\n")
        assert (done.text, done.count, done.changed) == ("# comment\na\t\n!b", 2, expected)
    assert (watch.request_count, watch.next_sync_at is not None) == (wanted + 1, True)
    assert [entry.change_message for entry in LogEntry.objects.all()] == ["Set the ignore patterns (2 now)"]


def test_neither_another_app_nor_anybody_for_an_ended_watch_sets_patterns(watches) -> None:
    portal, _, search = watches
    with pytest.raises(PermissionDenied):
        set_ignore_patterns(Actor.of_app(search.app), portal, "a")
    unwatch_repository(Actor.command(), portal)
    with pytest.raises(NotFound):
        set_ignore_patterns(Actor.command(), portal, "a")
