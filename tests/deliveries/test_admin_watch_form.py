"""*Watch a repository*: for one that the app watches already, the form shows an error and changes nothing."""

import threading
from typing import Any

import pytest
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, SyncRun
from deliveries_app.services import unwatch_repository
from tests.support.processes import in_threads
from tests.support.staff import staff
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
