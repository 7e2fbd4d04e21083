"""The app's own include and exclude patterns, beside `.docoraignore` and an administrator's ignore patterns."""

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository
from deliveries_app.planning.delivery_rows import delivery_rules_of
from deliveries_app.planning.plan import DeliveryRules
from deliveries_app.reports.file_explanation import explain
from deliveries_app.services import (
    ensure_watched,
    resync_single,
    unwatch_repository,
    watch_repository,
)
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watch_settings import change_watch
from repositories_app.models import Snapshot
from tests.support import transforms
from tests.support.admin_pages import posted_form
from tests.support.audit import by_users, messages
from tests.support.git import Entry, Repo
from tests.support.histories import assert_promise_kept, at_notification, compare_plans, kill_worker, sha
from tests.support.staff import staff
from tests.support.world import World

FILES = {
    "readme.md": b"r",
    "docs/a.md": b"a",
    "docs/a.txt": b"t",
    "docs/draft/b.md": b"b",
    "src/main.py": b"m",
    "x.env": b"x",
}
WATCHES = "/admin/deliveries_app/apprepository/"


@pytest.fixture
def plans():
    with compare_plans() as plans:
        yield plans


def choose(watch: AppRepository, include: str = "", exclude: str = "") -> bool:
    return change_watch(Actor.command(), watch, include_patterns=include, exclude_patterns=exclude)


def only(repo: Repo, *paths: str) -> dict[str, bytes]:
    return {path: content for path, content in repo.files().items() if path in paths}


def sent_since(world: World, count: int) -> list[tuple[str, str]]:
    return sorted((record.kind, record.path) for record in world.requests()[count:])


CHOICES = [
    ("", "", set(FILES), {}),
    ("docs/\n", "", {"docs/a.md", "docs/a.txt", "docs/draft/b.md"}, {"not_included": 3}),
    ("*.md", "", {"readme.md", "docs/a.md", "docs/draft/b.md"}, {"not_included": 3}),
    ("*.md\n!/readme.md", "draft/", {"docs/a.md"}, {"not_included": 4, "excluded": 1}),
    ("", "*.md\n!/readme.md", {"readme.md", "docs/a.txt", "src/main.py", "x.env"}, {"excluded": 2}),
    ("# everything\n", "docs/*\n!docs/draft", {"readme.md", "docs/draft/b.md", "src/main.py", "x.env"}, {"excluded": 2}),
    ("/nothing", "", set(), {"not_included": 6}),
]  # fmt: skip


def test_choices_over_time(world: World, plans) -> None:
    """Each change deletes what is no longer sent, creates what is sent now, and sends nothing else."""
    repo, watch = world.watch(FILES)
    world.settle()
    floor = watch.resend_floor
    for include, exclude, expected, left_out in [*CHOICES, *CHOICES[::2], CHOICES[0]]:
        before, sent = set(world.copy(watch)), len(world.requests())
        choose(watch, include, exclude)
        world.settle()
        assert_promise_kept(world, repo, watch, only(repo, *expected))
        assert watch.left_out == left_out
        assert sent_since(world, sent) == sorted(
            [*(("delete", path) for path in before - expected), *(("create", path) for path in expected - before)]
        )
    assert watch.resend_floor == floor


def test_plans_stay_fast_under_patterns(world: World, plans) -> None:
    repo, watch = world.watch({**FILES, "link": Entry.symlink("x"), "docs/link": Entry.symlink("x")})
    choose(watch, "docs/\n*.py", "draft/")
    world.settle()
    watch.refresh_from_db()
    assert watch.left_out == {"not_included": 3, "excluded": 1, "symlink": 1}
    steps = [
        (
            {"docs/new.md": b"1", "other.md": b"2", "docs/draft/c.md": b"3"},
            {"not_included": 4, "excluded": 2, "symlink": 1},
        ),
        ({"docs/a.md": b"4", "docs/draft/b.md": None, "link": None}, {"not_included": 3, "excluded": 1, "symlink": 1}),
        ({"docs/link": None, "src/main.py": None, "src/other.py": b"5"}, {"not_included": 3, "excluded": 1}),
    ]
    for changes, left_out in steps:
        repo.commit(changes)
        world.settle()
        assert plans[-1].paths is not None
        kept = [path for path in repo.files() if path.startswith("docs/") or path.endswith(".py")]
        assert_promise_kept(world, repo, watch, only(repo, *(path for path in kept if "draft" not in path)))
        assert (watch.left_out, watch.tree_files) == (left_out, len(world.copy(watch)))


def test_app_gets_nothing_that_others_leave_out(world: World, plans) -> None:
    """Neither an included path nor a `!` brings back what the owner or the administrator leaves out, and vice versa."""
    repo, watch = world.watch({**FILES, ".docoraignore": b"*.env\n!docs/draft/\n"})
    change_watch(Actor.command(), watch, ignore_patterns="src/\n!readme.md")
    choose(watch, "*.env\nsrc/\n*.md", "!*.env\n!src/\nreadme.md\ndraft")
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "docs/a.md"))
    assert watch.left_out == {"not_included": 2, "excluded": 2, "ignored": 2}
    choose(watch)
    world.settle()
    assert_promise_kept(
        world, repo, watch, {path: c for path, c in repo.files().items() if path not in {"x.env", "src/main.py"}}
    )


def test_ignore_file_applies_even_if_it_is_not_included(world: World, plans) -> None:
    repo, watch = world.watch({**FILES, ".docoraignore": b"draft/\n"})
    choose(watch, "docs/")
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "docs/a.md", "docs/a.txt"))
    repo.commit({".docoraignore": b"*.txt\n"})
    world.settle()
    assert plans[-1].paths is None
    assert_promise_kept(world, repo, watch, only(repo, "docs/a.md", "docs/draft/b.md"))


def test_each_app_has_its_own_choice(world: World, plans) -> None:
    repo, watch = world.watch(FILES)
    other = world.watch_url(repo, app=world.add_app("Search"))
    choose(watch, "*.md")
    world.settle()
    assert_promise_kept(world, repo, other)
    assert set(world.copy(watch)) == {"readme.md", "docs/a.md", "docs/draft/b.md"}
    assert Snapshot.objects.get().file_count == len(FILES)


def test_patterns_and_transforms_together(world: World, settings, plans) -> None:
    """Patterns match the paths in the repository, not the paths that transforms produce."""
    repo, watch = world.watch(FILES)
    transforms.use_transforms(settings, "Flatten")
    choose(watch, "docs/", "*.txt\nflat/")
    world.settle()
    assert world.copy(watch) == {"flat/a.md": sha(b"a"), "flat/b.md": sha(b"b")}
    choose(watch, "", "docs/")
    world.settle()
    assert set(world.copy(watch)) == {"flat/readme.md", "flat/main.py", "flat/x.env"}
    repo.commit({"docs/new.md": b"n", "new.md": b"n"})
    world.settle()
    assert set(world.copy(watch)) == {"flat/readme.md", "flat/main.py", "flat/x.env", "flat/new.md"}
    transforms.use_transforms(settings)
    world.settle()
    assert_promise_kept(
        world, repo, watch, {path: c for path, c in repo.files().items() if not path.startswith("docs/")}
    )


@pytest.mark.parametrize("when", ["during", "after a kill"])
def test_choice_that_changes_around_a_run(world: World, plans, when: str) -> None:
    repo, watch = world.watch(FILES)
    if when == "during":
        world.answer(at_notification(3, lambda: choose(AppRepository.objects.get(), "*.md", "draft")))
        world.sync(watch)
        world.answer(None)
    else:
        kill_worker(world, watch, lambda note: note.path == "docs/a.txt")
        choose(watch, "*.md", "draft")
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "readme.md", "docs/a.md"))
    resync_single(Actor.command(), watch)
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "readme.md", "docs/a.md"))


def test_rules_of_a_watch_without_patterns_keep_their_old_fingerprint() -> None:
    """After an upgrade, no watch needs a full plan."""
    plain = DeliveryRules(1, 1, 1000, "*.env")
    assert plain.fingerprint == "d05da22a0006c610c0bd0ab6293782f87f6e53336c6ba6e98586a0c47f9a2a5c"
    different = [
        DeliveryRules(1, 1, 1000, "*.env", include=i, exclude=e)
        for i, e in [("a", ""), ("", "a"), ("a", "a"), ("aa", "")]
    ]
    assert len({rules.fingerprint for rules in [plain, *different]}) == 5


# --- The service -----------------------------------------------------------------------------------------------------


def test_service_stores_audits_and_requests_a_sync(world: World) -> None:
    _, watch = world.watch(FILES)
    world.settle()
    user = User.objects.create_user("paul", is_staff=True)
    with pytest.raises(PermissionDenied):
        change_watch(Actor.of_user(user), watch, include_patterns="a", exclude_patterns="")
    user.user_permissions.add(Permission.objects.get(codename="change_apprepository"))
    actor = Actor.of_user(User.objects.get())
    assert change_watch(actor, watch, include_patterns="a\r\nb\n\n", exclude_patterns="# no\n")
    assert (watch.include_patterns, watch.exclude_patterns) == ("a\nb", "# no")
    assert AppRepository.objects.due().get() == watch
    world.settle()
    assert not change_watch(actor, watch, include_patterns="a\nb", exclude_patterns="# no")
    assert not AppRepository.objects.due().exists()
    assert messages(by_users()) == ["Changed the app's include and exclude patterns"]
    with pytest.raises(PermissionDenied):
        change_watch(Actor.of_app(world.add_app("Other")), watch, include_patterns="", exclude_patterns="")
    assert change_watch(Actor.of_app(world.app), watch, include_patterns="", exclude_patterns="# no")
    unwatch_repository(Actor.command(), watch)
    with pytest.raises(NotFound):
        choose(watch)


@pytest.mark.parametrize(
    ("include", "exclude", "code", "message"),
    [
        ("[a", "", "include_patterns", 'Include patterns: Line 1 ("[a") matches nothing'),
        ("", "ok\na\\", "exclude_patterns", 'Exclude patterns: Line 2 ("a\\") matches nothing'),
        ("a\x07", "[a", "include_patterns", "Include patterns: Line 1 contains a control character"),
        ("", "x" * 10_001, "exclude_patterns", "Exclude patterns: The patterns have 10,001 characters"),
        ("a\n" * 501, "", "include_patterns", "Include patterns: There are 501 patterns. The limit is 500."),
    ],
    ids=range(5),
)
def test_invalid_patterns_are_refused(world: World, include: str, exclude: str, code: str, message: str) -> None:
    repo, watch = world.watch(FILES)
    for act in (
        lambda: choose(watch, include, exclude),
        lambda: watch_repository(
            Actor.command(), world.app, repo.url, include_patterns=include, exclude_patterns=exclude
        ),
    ):
        with pytest.raises(ValidationError) as caught:
            act()
        assert caught.value.code == code
        assert caught.value.messages[0].startswith(message)
    watch.refresh_from_db()
    assert (watch.include_patterns, watch.exclude_patterns, watch.generation) == ("", "", 1)


def test_watching_with_patterns(world: World) -> None:
    repo = world.git.repo("acme/widgets", FILES)
    watch = watch_repository(
        Actor.command(), world.app, repo.url, include_patterns="*.md", exclude_patterns="draft"
    ).watch
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "readme.md", "docs/a.md"))
    assert len(world.requests()) == 2
    watch_repository(Actor.command(), world.app, repo.url)  # again: what is not given stays
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "readme.md", "docs/a.md"))
    watch_repository(Actor.command(), world.app, repo.url, include_patterns="*.py")
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "src/main.py"))
    unwatch_repository(Actor.command(), watch)
    assert world.watch_url(repo) == watch  # revived, it starts like a new one
    world.settle()
    assert_promise_kept(world, repo, watch)
    assert not delivery_rules_of(watch).has_patterns


# --- What people see -------------------------------------------------------------------------------------------------


def test_explanations(world: World) -> None:
    _, watch = world.watch(FILES)
    choose(watch, "# these\n*.md\ndocs/", "*.txt\ndocs/draft/")
    world.settle()
    found = {path: explain(Actor.command(), watch, path) for path in FILES}
    assert {path: one.decision.state for path, one in found.items()} == {
        "readme.md": "delivered",
        "docs/a.md": "delivered",
        "docs/a.txt": "left out",
        "docs/draft/b.md": "left out",
        "src/main.py": "left out",
        "x.env": "left out",
    }
    assert found["x.env"].decision.message == "Not sent: none of the app's include patterns matches it."
    assert (
        found["docs/a.txt"].decision.message == 'Not sent: line 1 of the app\'s exclude patterns ("*.txt") excludes it.'
    )
    assert found["docs/draft/b.md"].decision.message == (
        'Not sent: line 2 of the app\'s exclude patterns ("docs/draft/") excludes the directory docs/draft.'
    )


def test_admin_shows_and_edits_them(world: World) -> None:
    repo, watch = world.watch(FILES)
    world.settle()
    keeper = staff("karla", "view_apprepository", "change_apprepository")
    page, url = f"{WATCHES}{watch.pk}/change/", f"{WATCHES}{watch.pk}/app-patterns/"
    assert "Include patterns of the app" not in keeper.get(page).text
    assert "deletes files at the client that no longer match" in keeper.get(url).text
    form = {"include_patterns": "*.md\r\n  lead\r\n", "exclude_patterns": "draft/"}
    done = keeper.post(url, form, follow=True).text
    assert "Patterns saved. A sync is queued." in done
    assert "Include patterns of the app" in done
    assert "Exclude patterns of the app" in done
    assert "No changes to save." in keeper.post(url, form, follow=True).text
    assert AppRepository.objects.get().include_patterns == "*.md\n  lead"
    refused = keeper.post(url, {"include_patterns": "", "exclude_patterns": "[a"})
    assert refused.context["form"].errors.keys() == {"exclude_patterns"}
    world.settle()
    assert_promise_kept(world, repo, watch, only(repo, "readme.md", "docs/a.md"))
    text = keeper.get(page).text
    for name in ("Not included", "Excluded by the app"):
        assert name in text
    reader: Client = staff("rita", "view_apprepository")
    assert "Include patterns of the app" in reader.get(page).text
    assert url not in reader.get(page).text


def test_saving_a_stale_page_keeps_what_the_app_has_changed(world: World) -> None:
    repo, watch = world.watch(FILES)
    choose(watch, "*.md", "*.txt")
    world.settle()
    keeper = staff("karla", "view_apprepository", "change_apprepository")
    url = f"{WATCHES}{watch.pk}/app-patterns/"
    stale = posted_form(keeper, url)
    invalid = keeper.post(url, stale | {"include_patterns": "[a"})
    ensure_watched(Actor.of_app(world.app), world.app, repo.url, exclude_patterns="*.txt\ndraft/\n")
    assert "No changes to save." in keeper.post(url, stale, follow=True).text
    # Browsers post line ends as CRLF. The page of a refused form still compares with what the first page showed.
    hidden = invalid.context["form"]["exclude_patterns"].as_hidden(only_initial=True)
    assert 'name="initial-exclude_patterns" value="*.txt"' in hidden
    answer = keeper.post(url, stale | {"include_patterns": "*.md\r\n*.py\r\n"}, follow=True)
    assert "Patterns saved. A sync is queued." in answer.text
    watch.refresh_from_db()
    assert (watch.include_patterns, watch.exclude_patterns) == ("*.md\n*.py", "*.txt\ndraft/")
    browser = posted_form(keeper, url)
    browser = {name: value.replace("\n", "\r\n") for name, value in browser.items()} | {"include_patterns": ""}
    choose(watch, "*.md", "other/")
    keeper.post(url, browser)
    watch.refresh_from_db()
    assert (watch.include_patterns, watch.exclude_patterns) == ("", "other/")
