"""One repository under several ids, as after an import: every id keeps working, and new watchers get the first row."""

import pytest
from django.db import IntegrityError
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import unwatch_repository, watch_repository
from deliveries_app.sweep.cleanup import remove_ended
from repositories_app.models import Repository
from tests.support.git import Repo
from tests.support.staff import staff
from tests.support.world import World


@pytest.fixture
def repo(world: World) -> Repo:
    return world.git.repo("acme/docs", {"a.txt": b"a"})


@pytest.fixture
def twins(repo: Repo) -> list[Repository]:
    """The first row of the repository and a second one."""
    fields = {"canonical_url": repo.url, "owner": "acme", "name": "docs"}
    return [Repository.objects.create(twin=number, **fields) for number in (0, 1)]


def watching(app: App, repository: Repository, url: str) -> AppRepository:
    return AppRepository.objects.create(app=app, repository=repository, github_url=url)


def test_new_watcher_gets_the_first_row(world: World, repo: Repo, twins) -> None:
    other = world.add_app("Search")
    for app, url in ((world.app, repo.url), (other, f"{repo.url}.git")):
        assert watch_repository(Actor.command(), app, url).watch.repository == twins[0]


def test_watching_a_twin_again_keeps_its_id(world: World, repo: Repo, twins) -> None:
    watching(world.app, twins[1], f"{repo.url}.git")
    for url in (f"{repo.url}.git", repo.url):
        watched = watch_repository(Actor.command(), world.app, url)
        assert (watched.watch.repository, watched.created) == (twins[1], False)
    assert AppRepository.objects.count() == 1


@pytest.mark.parametrize("ending", [".git", "/"])
def test_watcher_of_both_gets_the_one_with_the_same_spelling(world: World, repo: Repo, twins, ending: str) -> None:
    watching(world.app, twins[0], repo.url)
    watching(world.app, twins[1], f"{repo.url}{ending}")
    for url, expected in ((repo.url, twins[0]), (f"{repo.url}{ending}", twins[1])):
        assert watch_repository(Actor.command(), world.app, url).watch.repository == expected
    assert AppRepository.objects.count() == 2


def test_twin_of_another_app_is_not_used(world: World, repo: Repo, twins) -> None:
    watching(world.add_app("Search"), twins[1], f"{repo.url}.git")
    assert watch_repository(Actor.command(), world.app, f"{repo.url}.git").watch.repository == twins[0]


def test_twin_numbers_are_unique(twins, transactional_db) -> None:
    with pytest.raises(IntegrityError):
        Repository.objects.create(canonical_url=twins[0].canonical_url, twin=1, owner="acme", name="docs")


def test_unwatching_one_twin_keeps_the_other(world: World, repo: Repo, twins) -> None:
    first, second = watching(world.app, twins[0], repo.url), watching(world.app, twins[1], f"{repo.url}.git")
    for watch in (first, second):
        world.sync(watch)
    unwatch_repository(Actor.command(), first)
    remove_ended()
    assert list(Repository.objects.all()) == [twins[1]]
    assert world.sync(second).status == "synced"
    repo.commit({"b.txt": b"b"})
    world.settle()
    assert [record.path for record in world.requests("create")] == ["a.txt", "a.txt", "b.txt"]
    assert watch_repository(Actor.command(), world.add_app("Search"), repo.url).watch.repository.twin == 0


def test_app_page_distinguishes_twins_by_url(world: World, repo: Repo, twins) -> None:
    watches = [watching(world.app, twins[0], repo.url), watching(world.app, twins[1], f"{repo.url}.git")]
    client: Client = staff("olga", "view_app", "view_apprepository", "view_repository", "view_delivery")
    address = f"/admin/deliveries_app/app/{world.app.pk}/why/"
    for watch in watches:
        answer = client.get(address, {"repository": watch.github_url, "path": "a.txt"})
        assert answer.headers["Location"] == f"/admin/deliveries_app/apprepository/{watch.pk}/why/?path=a.txt"
    answer = client.get(address, {"repository": "acme/docs", "path": "a.txt"}, follow=True)
    assert "watches several repositories named acme/docs. Enter the URL" in answer.text
    found = client.get("/admin/repositories_app/repository/", {"q": repo.url}).text
    assert all(f"/admin/repositories_app/repository/{twin.pk}/change/" in found for twin in twins)
