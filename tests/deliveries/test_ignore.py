"""`.docoraignore` and the patterns of a watch: files that match are not sent, or deleted if they were."""

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied, ValidationError

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Status
from deliveries_app.planning.plan import Plan
from deliveries_app.services import resync_single, unwatch_repository
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watch_settings import change_watch
from deliveries_app.services.watching import MAX_CHARACTERS, MAX_PATTERNS
from tests.support.audit import by_users, messages
from tests.support.git import Entry, Repo
from tests.support.histories import assert_promise_kept, compare_plans, kill_worker, refusing
from tests.support.world import World

FILES = {"readme.md": b"r", "secret.env": b"s", "docs/a.md": b"a", "docs/draft/b.md": b"b", "build/out": b"o"}


@pytest.fixture
def plans():
    with compare_plans() as plans:
        yield plans


def without(repo: Repo, *ignored: str) -> dict[str, bytes]:
    """HEAD without these paths and everything below them."""
    return {
        path: content
        for path, content in repo.files().items()
        if not any(path == name or path.startswith(f"{name}/") for name in ignored)
    }


def sent_since(world: World, count: int) -> list[tuple[str, str]]:
    return [(record.kind, record.path) for record in world.requests()[count:]]


def set_patterns(watch: AppRepository, text: str) -> None:
    change_watch(Actor.command(), watch, ignore_patterns=text)


def test_ignored_files_are_counted_and_not_sent(world: World, plans: list[Plan]) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\n/build/\n"})
    world.settle()
    assert_promise_kept(world, repo, watch, without(repo, "secret.env", "build"))
    assert ".docoraignore" in world.copy(watch)
    assert watch.left_out == {"ignored": 2}
    assert not watch.failures.exists()
    run = world.runs(watch)[0]
    assert (run.files_skipped, run.left_out) == (2, {"ignored": 2})
    assert watch.tree_files == 4


def test_changed_ignore_file_deletes_and_creates(world: World, plans: list[Plan]) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"build/\n"})
    world.settle()
    sent = len(world.requests())
    repo.commit({".docoraignore": b"docs/draft\n*.env\n"})
    world.settle()
    assert sorted(sent_since(world, sent)) == [
        ("create", "build/out"),
        ("delete", "docs/draft/b.md"),
        ("delete", "secret.env"),
        ("update", ".docoraignore"),
    ]
    assert plans[-1].paths is None
    assert_promise_kept(world, repo, watch, without(repo, "docs/draft", "secret.env"))
    repo.commit({".docoraignore": None})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert watch.left_out == {}


def test_plans_stay_fast_while_the_ignore_file_is_unchanged(world: World, plans: list[Plan]) -> None:
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
        assert plans[-1].paths is not None
        assert_promise_kept(world, repo, watch, without(repo, "secret.env", "x.env", "build"))
        assert watch.left_out == expected
        assert watch.tree_files == len(world.copy(watch))


def test_failing_file_that_becomes_ignored_is_deleted(world: World, plans: list[Plan]) -> None:
    repo, watch = world.watch({**FILES})
    world.settle()
    repo.commit({"poison": b"p", "other": b"o"})
    world.answer(refusing("poison", "other"))
    world.sync(watch)
    repo.commit({".docoraignore": b"poison\n"})  # the client may have stored it despite its error
    world.sync(watch)
    world.answer(None)
    world.settle()
    assert_promise_kept(world, repo, watch, without(repo, "poison"))
    assert watch.left_out == {"ignored": 1}


def test_watch_patterns_override_the_ignore_file(world: World, plans: list[Plan]) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\n*.md\n"})
    other = world.watch_url(repo, app=world.add_app("Search"))
    world.settle()
    set_patterns(watch, "!*.md\r\ndocs/draft/\r\n!secret.env")
    assert AppRepository.objects.due().get() == watch
    world.settle()
    assert_promise_kept(world, repo, watch, without(repo, "docs/draft"))
    assert set(world.copy(other)) == {".docoraignore", "build/out"}
    set_patterns(watch, "")
    world.settle()
    assert_promise_kept(world, repo, watch, without(repo, "secret.env", "docs", "readme.md"))


def test_patterns_changed_during_a_run(world: World, plans: list[Plan]) -> None:
    repo, watch = world.watch(FILES)
    kill_worker(world, watch, lambda note: note.path == "docs/a.md")
    set_patterns(watch, "docs/\nsecret.env")
    world.settle()
    assert_promise_kept(world, repo, watch, without(repo, "docs", "secret.env"))
    resync_single(Actor.command(), watch)
    world.settle()
    assert_promise_kept(world, repo, watch, without(repo, "docs", "secret.env"))


def test_ignore_file_must_be_a_regular_file_in_the_root(world: World, plans: list[Plan]) -> None:
    repo, watch = world.watch(
        {**FILES, "docs/.docoraignore": b"*\n", ".docoraignore": Entry.symlink("docs/.docoraignore")}
    )
    world.settle()
    assert_promise_kept(world, repo, watch)
    listed = dict(watch.failures.values_list("path", "message"))
    assert set(listed) == {".docoraignore", "/.docoraignore"}
    assert listed["/.docoraignore"] == (
        ".docoraignore is a link or a submodule in this commit. It is not read, so it ignores nothing."
    )
    repo.commit({".docoraignore": None})
    repo.commit({".docoraignore/x": b"*\n"})
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert not watch.failures.exists()


def test_invalid_lines_are_listed(world: World, plans: list[Plan]) -> None:
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
        '.docoraignore: Line 2 ("[a") matches nothing: its bracket is not closed. Docora skips such lines.'
    )
    repo.commit({"docs/a.md": b"new"})
    world.settle()
    assert plans[-1].paths is not None
    assert watch.failures.get() == listed
    assert watch.left_out == {"ignored": 1}
    repo.commit({".docoraignore": b"*.env\n"})
    world.settle()
    assert not watch.failures.exists()
    assert_promise_kept(world, repo, watch, without(repo, "secret.env"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 65_537, "65,537 bytes, more than 65,536"),
        (b"a\n" * 1001, "1,001 patterns, more than 1,000"),
        ("*.env\r\n".encode("utf-16"), "is not UTF-8 text: it contains NUL bytes. Save it as UTF-8. Nothing is sent"),
        (b"*.env\n\0\xff\xfe", "is not UTF-8 text"),
        (b"*.env\nM\xfcller.txt\n", "is not UTF-8 text (line 2). Save it as UTF-8. Nothing is sent"),
    ],
    ids=["too long", "too many", "UTF-16", "binary", "Latin-1"],
)
def test_unusable_ignore_file_fails_the_sync(world: World, content: bytes, message: str) -> None:
    """Otherwise files that should be hidden would be sent."""
    repo, watch = world.watch({**FILES, ".docoraignore": content})
    watch = world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "rules")
    assert message in watch.last_error
    assert world.requests() == []
    repo.commit({".docoraignore": b"*.env\n" * 1000})
    world.sync(watch)
    assert_promise_kept(world, repo, watch, without(repo, "secret.env"))


# --- The service --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n[b\nc", 'Line 2 ("[b") matches nothing: its bracket is not closed. Fix or remove it.'),
        (
            "[a\n" * 6,
            " ".join(f'Line {number} ("[a") matches nothing: its bracket is not closed.' for number in range(1, 6))
            + " 1 more line is invalid. Fix or remove them.",
        ),
        ("a\nb\0c", "Line 2 contains a control character. Remove it."),
        ("a\x1b[2J", "Line 1 contains a control character. Remove it."),
        ("lone \ud800", "Line 1 contains a control character. Remove it."),
        ("x" * (MAX_CHARACTERS + 1), "The patterns have 10,001 characters. The limit is 10,000."),
        ("a\n" * (MAX_PATTERNS + 1), "There are 501 patterns. The limit is 500."),
    ],
)
def test_invalid_patterns_are_rejected(watches, text: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        change_watch(Actor.command(), watches[0], ignore_patterns=text)
    assert refused.value.messages == [message]
    watches[0].refresh_from_db()
    assert watches[0].ignore_patterns == ""


def test_setting_patterns_requests_a_sync_and_is_audited(watches) -> None:
    """Setting the same patterns again does neither."""
    watch = watches[0]
    anna = User.objects.create_user("anna", password="x", is_staff=True)
    with pytest.raises(PermissionDenied):
        change_watch(Actor.of_user(anna), watch, ignore_patterns="a")
    anna.user_permissions.add(Permission.objects.get(codename="change_apprepository"))
    actor = Actor.of_user(User.objects.get(pk=anna.pk))
    requests = watch.request_count
    for expected in (True, False):
        assert change_watch(actor, watch, ignore_patterns="# comment\r\na\t\n!b\n\n") is expected
        assert watch.ignore_patterns == "# comment\na\t\n!b"
    assert (watch.request_count, watch.next_sync_at is not None) == (requests + 1, True)
    assert messages(by_users()) == ["Changed the ignore patterns (2 now)"]


def test_patterns_of_a_foreign_or_ended_watch(watches) -> None:
    portal, _, search = watches
    with pytest.raises(PermissionDenied):
        change_watch(Actor.of_app(search.app), portal, ignore_patterns="a")
    unwatch_repository(Actor.command(), portal)
    with pytest.raises(NotFound):
        change_watch(Actor.command(), portal, ignore_patterns="a")
