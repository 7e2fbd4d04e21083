"""Services whose precondition changes between the request and the update."""

import threading

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Notice
from deliveries_app.services import (
    AlreadyWatched,
    NotFound,
    delete_app,
    unwatch_repository,
    watch_repository,
    watch_settings,
    watching,
)
from deliveries_app.services.keys import cancel_key_rotation, retire_old_key, start_key_rotation
from deliveries_app.services.pinging import send_ping
from deliveries_app.services.tokens import retire_old_tokens, rotate_app_token
from deliveries_app.sweep.cleanup import remove_ended
from deliveries_app.sync.circuit import record_git_failure
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.git.url import parse_url
from repositories_app.models import Repository
from tests.api.caller import Caller, code_of
from tests.support.admin_pages import superuser
from tests.support.processes import in_threads
from tests.support.staff import make_app
from tests.support.world import World

SYSTEM = Actor.system()


def test_app_that_is_removed_during_the_git_check(world: World) -> None:
    repo = world.git.repo("acme/widgets", {"a.txt": b"a"})
    stale = App.objects.get(pk=world.app.pk)
    delete_app(SYSTEM, world.app)
    with pytest.raises(NotFound):
        watch_repository(Actor.of_app(stale), stale, repo.url)
    remove_ended()
    assert not App.objects.exists()
    assert not Repository.objects.exists()


@pytest.mark.parametrize("page", ["POST", "PUT", "form", "form for many"])
def test_page_or_call_whose_app_is_deleted_during_the_git_check(world: World, page: str) -> None:
    """The API said that the URL was invalid."""
    repo = world.git.repo("acme/widgets", {"a.txt": b"a"})
    caller, root = Caller(world.app), superuser()

    def delete(method: str, target: str) -> None:
        in_threads(lambda: delete_app(SYSTEM, world.app))

    world.git.server.on_request = delete
    if page == "POST":
        assert code_of(caller.post("", {"github_url": repo.url}), 404) == "not_watched"
    elif page == "PUT":
        assert code_of(caller.put({"github_url": repo.url}), 404) == "not_watched"
    elif page == "form":
        form = {"app": world.app.pk, "github_url": repo.url}
        answer = root.post("/admin/deliveries_app/apprepository/add/", form)
        assert answer.context["form"].errors == {"app": ["App not found."]}
    else:
        answer = root.post(f"/admin/deliveries_app/app/{world.app.pk}/watch-many/", {"urls": repo.url}, follow=True)
        assert "Perhaps it was deleted?" in answer.text
    assert not AppRepository.objects.exists()


def test_put_of_a_repository_that_is_unwatched_during_the_git_check(world: World) -> None:
    """The API answered that the repository was not watched, although it had been asked to watch it."""
    repo, watch = world.watch({"a.txt": b"a"})
    caller = Caller(world.app)
    repo.commit({"b.txt": b"b"}, branch="next")
    wanted = {"github_url": repo.url, "ref": "next", "exclude_patterns": ["*.png"]}

    def unwatch(method: str, target: str) -> None:
        in_threads(lambda: unwatch_repository(SYSTEM, watch))
        world.git.server.on_request = None

    world.git.server.on_request = unwatch
    answer = caller.put(wanted)
    assert answer.status_code == 201
    assert answer.json() | wanted == answer.json()
    world.settle()
    assert set(world.copy(watch)) == {"b.txt"}


@pytest.mark.parametrize("form", ["watch", "token"])
def test_user_is_deactivated_during_the_git_check(world: World, form: str) -> None:
    _, watch = world.watch()
    root, url = superuser(), world.git.repo("acme/new", {"a.txt": b"a"}).url

    def deactivate(method: str, target: str) -> None:
        in_threads(lambda: User.objects.update(is_active=False))

    world.git.server.on_request = deactivate
    if form == "watch":
        answer = root.post("/admin/deliveries_app/apprepository/add/", {"app": world.app.pk, "github_url": url})
    else:
        answer = root.post(f"/admin/deliveries_app/apprepository/{watch.pk}/token/", {"github_token": "secret"})
    assert answer.status_code == 403
    assert AppRepository.objects.get().github_token == ""


def test_repository_that_is_watched_during_the_git_check(watches, settings) -> None:
    """The app did not watch it when the request began."""
    settings.ALLOWED_GIT_HOSTS = ["github.com"]
    watch, options = watches[0], watching.validate_options()
    url = parse_url(watch.github_url)
    with pytest.raises(AlreadyWatched):
        watching.store_watch(SYSTEM, watch.app, url, options, is_private=False, must_be_new=True)
    assert not watch.runs.exists()


@pytest.mark.parametrize(
    "service",
    [start_key_rotation, retire_old_key, cancel_key_rotation, rotate_app_token, retire_old_tokens, send_ping],
    ids=lambda service: service.__name__,
)
def test_services_refuse_an_app_that_is_being_removed(db, service) -> None:
    stale = make_app("Portal")
    App.objects.update(ended_at=timezone.now())
    with pytest.raises(NotFound):
        service(SYSTEM, stale)
    App.objects.all().delete()
    with pytest.raises(NotFound):
        service(SYSTEM, stale)


@pytest.mark.django_db(transaction=True)
def test_replacing_a_token_while_the_circuit_opens(watches, monkeypatch, settings) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    Repository.objects.update(consecutive_failures=1)
    written, outcomes = threading.Event(), []
    original_lock, original_close = watch_settings._lock, watch_settings.circuit.close_circuit

    def pause() -> None:
        """After the first of the two rows is locked, let the other thread proceed until it blocks."""
        if not written.is_set():
            written.set()
            opening.join(1.0)

    monkeypatch.setattr(watch_settings, "check_readable", lambda *asked, **options: False)
    monkeypatch.setattr(watch_settings, "_lock", lambda watch: (original_lock(watch), pause())[0])
    monkeypatch.setattr(watch_settings.circuit, "close_circuit", lambda row: (original_close(row), pause()))

    def open_circuit() -> None:
        written.wait(10)
        failure = GitError(Cause.NETWORK, "The host is down.", for_every_watcher=True)
        try:
            outcomes.append(record_git_failure(Repository.objects.get(pk=watches[0].repository_id), failure))
        except Exception as error:
            outcomes.append(error)
        finally:
            connection.close()

    opening = threading.Thread(target=open_circuit)
    opening.start()
    watch_settings.change_watch(SYSTEM, AppRepository.objects.get(pk=watches[0].pk), github_token="a-token")
    opening.join()
    assert outcomes == [settings.CIRCUIT_BREAKER_COOLDOWN_SECONDS]
    assert Notice.objects.count() == 2, "one for each watcher"
