"""*Watch a repository*: for one that the app watches already, the form shows an error and changes nothing."""

import threading
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, SyncRun
from deliveries_app.services import unwatch_repository
from tests.support.git import Takeover
from tests.support.processes import in_threads
from tests.support.staff import make_app, staff
from tests.support.world import World

ADD = "/admin/deliveries_app/apprepository/add/"


@pytest.fixture
def operator(world: World) -> Client:
    return staff("olga", "view_app", "view_apprepository", "add_apprepository")


def submit(client: Client, app: App, url: str, token: str = "") -> Any:
    return client.post(ADD, {"app": app.pk, "github_url": url, "github_token": token})


def state() -> list[tuple[Any, ...]]:
    """Return what a re-sync or a new token would change."""
    fields = ("generation", "resend_floor", "request_count", "github_url", "github_token", "next_sync_at")
    return list(AppRepository.objects.values_list(*fields))


@pytest.mark.parametrize("token", ["", "other"])
def test_watched_repository_is_a_field_error(world: World, operator: Client, token: str) -> None:
    """Otherwise, an empty field would erase the token, and every file would be sent again."""
    repo = world.git.repo("acme/private", {"a.txt": b"1"}, token="secret")
    watch = world.sync(world.watch_url(repo, token="secret"))
    before, runs = state(), SyncRun.objects.count()
    asked = len(world.git.server.requests)
    page = submit(operator, world.app, f"{repo.url}.git", token)
    assert page.status_code == 200
    assert "Portal already watches this repository." in page.text
    link = f'<a href="/admin/deliveries_app/apprepository/{watch.pk}/change/">Open it</a>'
    assert f"{link} to re-sync or to change the token." in page.text
    assert (state(), SyncRun.objects.count()) == (before, runs)
    assert len(world.git.server.requests) == asked  # known without the git host


def test_link_needs_the_view_permission(world: World) -> None:
    repo, watch = world.watch()
    page = submit(staff("adam", "view_app", "add_apprepository"), world.app, repo.url).text
    assert "Portal already watches this repository." in page
    assert f"apprepository/{watch.pk}/" not in page


def test_name_of_the_app_is_escaped_in_the_error(world: World, operator: Client) -> None:
    app = world.add_app("<b>Search</b>")
    repo, _ = world.watch(app=app)
    assert "&lt;b&gt;Search&lt;/b&gt; already watches" in submit(operator, app, repo.url).text


def test_two_submits_at_once_start_one_sync(world: World, operator: Client) -> None:
    """Both have asked the git host before either has stored the watch."""
    repo = world.git.repo("acme/widgets", {"a.txt": b"1"})
    both_asked = threading.Barrier(2)

    def wait_for_the_other(method: str, target: str) -> None:
        both_asked.wait(20)

    world.git.server.on_request = wait_for_the_other
    answers: Any = in_threads(*[lambda: submit(operator, world.app, repo.url)] * 2)
    assert sorted(answer.status_code for answer in answers) == [200, 302]
    refused = next(answer for answer in answers if answer.status_code == 200)
    assert "Portal already watches this repository." in refused.text
    watch = AppRepository.objects.get()
    assert (watch.generation, watch.resend_floor, watch.runs.count()) == (1, 1, 1)


def test_repository_that_is_no_longer_watched_can_be_watched_again(world: World, operator: Client) -> None:
    repo, watch = world.watch()
    unwatch_repository(Actor.command(), watch)
    answer = submit(operator, world.app, repo.url)
    assert answer.url == f"/admin/deliveries_app/apprepository/{watch.pk}/change/"
    assert AppRepository.objects.alive().get().pk == watch.pk


def test_another_app_can_watch_the_same_repository(world: World, operator: Client) -> None:
    repo, _ = world.watch()
    other = world.add_app("Search")
    assert submit(operator, other, repo.url).status_code == 302
    assert AppRepository.objects.filter(app=other).count() == 1


def move(world: World, watch: AppRepository, address: str) -> AppRepository:
    """Redirect the watch's repository to `address`, and sync."""

    def redirect(method: str, target: str) -> Takeover | None:
        name = str(watch.repository)
        if f"/{name}/" not in target and f"/{name}.git/" not in target:
            return None
        lines = f"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nConnection: close\r\nLocation: {address}\r\n\r\n"
        return lambda connection: connection.sendall(lines.encode())

    world.git.server.on_request = redirect
    return world.sync(watch)


def test_renamed_repository_leads_to_a_filled_in_form(world: World, operator: Client) -> None:
    repo = world.git.repo("acme/widgets", {"a.txt": b"1"}, token="secret")
    new = world.git.repo("acme/gadgets", {"a.txt": b"1"}, token="secret")
    watch = world.sync(world.watch_url(repo, token="secret", ref=repo.branch))
    AppRepository.objects.update(ignore_patterns="*.tmp", include_patterns="docs/", exclude_patterns="docs/old/")
    watch = move(world, watch, f"{new.url}/info/refs?service=git-upload-pack")
    page = f"/admin/deliveries_app/apprepository/{watch.pk}/change/"
    form = f"{ADD}?moved={watch.pk}"
    text = operator.get(page).text
    assert f'href="{form}">Watch the new URL</a>' in text
    assert "its branch or tag is gone" not in text  # the error and the button say what to do
    assert form not in staff("vera", "view_app", "view_apprepository").get(page).text

    shown = operator.get(form)
    filled = shown.context["form"].initial
    assert filled == {
        "app": world.app.pk,
        "github_url": new.url,
        "ref": repo.branch,
        "ignore_patterns": "*.tmp",
        "include_patterns": "docs/",
        "exclude_patterns": "docs/old/",
    }
    assert "Its token isn't copied" in shown.text
    assert "secret" not in shown.text
    answer = operator.post(form, filled | {"github_token": "secret"})
    added = AppRepository.objects.latest("pk")
    assert (added.github_url, added.ignore_patterns, added.pk != watch.pk) == (new.url, "*.tmp", True)
    message = operator.get(answer.url).text
    assert (
        f'now watches acme/gadgets. Once it is up to date, stop watching <a href="{page}">acme/widgets</a>.' in message
    )


@pytest.mark.parametrize("codenames", [("view_app", "add_apprepository"), ("view_apprepository", "add_apprepository")])
def test_new_url_is_only_for_those_who_can_view_the_old_one(world: World, codenames: tuple[str, ...]) -> None:
    _, watch = world.watch()
    watch = move(world, watch, "/acme/gadgets/info/refs")
    shown = staff("adam", *codenames).get(f"{ADD}?moved={watch.pk}")
    assert "acme/gadgets" not in shown.text


@pytest.mark.parametrize("value", ["", "x", "0", "99999999", "-1"])
def test_unknown_moved_watch_leaves_the_form_empty(world: World, operator: Client, value: str) -> None:
    assert operator.get(ADD, {"moved": value}).context["form"].initial == {"app": None}


def test_repository_that_has_not_moved_fills_in_nothing(world: World, operator: Client) -> None:
    _, watch = world.watch()
    assert operator.get(ADD, {"moved": watch.pk}).context["form"].initial == {"app": None}


@pytest.mark.parametrize("can_register", [False, True])
def test_without_an_app_the_page_says_what_to_do(db, can_register: bool) -> None:
    user = staff("olga", "view_app", "view_apprepository", "add_apprepository", *["onboard_app"] * can_register)
    for _ in ("none yet", "the last one is being deleted"):
        page = user.get(ADD).text
        assert "There are no apps yet." in page
        assert ('href="/admin/deliveries_app/app/add/">Register app</a>' in page) == can_register
        assert ("Ask an administrator to register one." in page) != can_register
        assert 'name="github_url"' not in page
        App.objects.filter(pk=make_app("Portal").pk).update(ended_at=timezone.now())
