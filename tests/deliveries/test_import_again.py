"""A second import adds what is new, and does not restore what was removed since the first."""

from datetime import timedelta

import pytest

from deliveries_app.actors import Actor
from deliveries_app.importing import write
from deliveries_app.models import App, AppRepository, Imported
from deliveries_app.services import delete_app, resync_single, unwatch_repository, watch_repository
from deliveries_app.services.tokens import rotate_app_token
from deliveries_app.sweep.cleanup import remove_ended
from repositories_app.models import Repository
from tests.api.caller import Caller, error_of
from tests.deliveries.test_import import BASE, GIT, progress_of, reasons, run
from tests.deliveries.test_import_sync import give_copy
from tests.support.existing import ExistingApp, ExistingRepository, ExistingService
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, sha
from tests.support.staff import make_app
from tests.support.world import KEY, World

FILES = {"a.txt": b"a", "dir/b.txt": b"b"}
UNWATCHED = "It was imported before and has been unwatched here since. It stays unwatched."

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def imported(world: World, existing: ExistingService, monkeypatch) -> tuple[Repo, ExistingApp, ExistingRepository]:
    """An imported app and repository. The app has every file."""
    repo, app = world.git.repo("acme/docs", FILES), existing.app(world.receiver.url, "Moved", key=KEY)
    repository = existing.repository(repo.url)
    existing.watch(app, repository, FILES)
    run(existing, monkeypatch)
    return repo, app, repository


def unwatch_as_client(app: ExistingApp, repository: ExistingRepository) -> None:
    caller = Caller(App.objects.get(app_id=app.app_id), app.token)
    assert caller.delete(f"/{repository.repository_id}").status_code == 204


@pytest.mark.parametrize("gone", [True, False], ids=["row removed", "row not yet removed"])
def test_watch_that_a_client_unwatched_stays_unwatched(
    world: World, existing: ExistingService, monkeypatch, imported, gone: bool
) -> None:
    repo, app, repository = imported
    unwatch_as_client(app, repository)
    if gone:
        assert remove_ended() == 1
    for arguments in (["--dry-run"], []):
        report = run(existing, monkeypatch, *arguments)
        assert (progress_of(report)["apps"], progress_of(report)["watches"]) == ((0, 1, 0), (0, 0, 1))
        assert progress_of(report)["files"] == (0, 0, 2)
        assert UNWATCHED in reasons(report, "remarks")
        assert (report["failed"], report["problem_count"], report["remark_count"]) == (False, 0, 1)
    assert AppRepository.objects.alive().count() == 0
    repo.commit({"a.txt": b"changed"})
    world.settle()
    assert world.requests() == []
    assert Repository.objects.exists() is not gone, "a repository without watches is not restored"


def test_removed_app_and_its_token_stay_removed(existing: ExistingService, monkeypatch, imported) -> None:
    _, app, _ = imported
    row = App.objects.get(app_id=app.app_id)
    delete_app(Actor.command(), row)
    remove_ended()
    assert not App.objects.filter(app_id=app.app_id).exists()
    existing.watch(app, existing.repository(f"{GIT}/later"), FILES)
    for arguments in (["--dry-run"], []):
        report = run(existing, monkeypatch, *arguments)
        assert progress_of(report) == {
            "apps": (0, 0, 1), "repositories": (1, 0, 1), "watches": (0, 0, 2), "files": (0, 0, 4),
        }  # fmt: skip
        remark = f"app Moved ({app.app_id}): It was imported before and has been removed here since. It stays removed"
        assert remark in reasons(report, "remarks")
        assert not report["failed"]
    assert not App.objects.filter(app_id=app.app_id).exists()
    error_of(Caller(row, app.token).get(), 401)


def test_removed_repository_returns_under_its_id_for_a_new_watch(
    existing: ExistingService, monkeypatch, imported
) -> None:
    _, app, repository = imported
    unwatch_as_client(app, repository)
    remove_ended()
    existing.watch(existing.app(BASE, "Search"), repository, FILES)
    dry, wet = run(existing, monkeypatch, "--dry-run"), run(existing, monkeypatch)
    assert progress_of(dry) == progress_of(wet) == {
        "apps": (1, 1, 0), "repositories": (1, 0, 0), "watches": (1, 0, 1), "files": (2, 0, 2),
    }  # fmt: skip
    assert reasons(wet, "remarks").count("\n") == 0, "no remark calls it a second spelling"
    watch = AppRepository.objects.get()
    assert (watch.app.name, watch.repository.repository_id) == ("Search", repository.repository_id)


def test_rewatched_repository_stays_unchanged(world: World, existing: ExistingService, monkeypatch, imported) -> None:
    repo, app, repository = imported
    unwatch_as_client(app, repository)
    remove_ended()
    watch = watch_repository(Actor.command(), App.objects.get(app_id=app.app_id), repo.url).watch
    assert watch.repository.repository_id != repository.repository_id
    report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (0, 0, 1)
    assert AppRepository.objects.get() == watch
    assert Repository.objects.get() == watch.repository


def test_interrupted_import_does_not_count_as_removal(world: World, existing: ExistingService, monkeypatch) -> None:
    app = existing.app(BASE)
    for name in ("docs", "site"):
        existing.watch(app, existing.repository(f"{GIT}/{name}"), FILES)
    with monkeypatch.context() as patch:

        def stop(*_: object) -> int:
            raise KeyboardInterrupt

        patch.setattr(write, "write_records", stop)
        with pytest.raises(Exception, match="Nothing is lost"):
            run(existing, monkeypatch)
    assert AppRepository.objects.get().arriving
    assert Imported.objects.count() == 2
    report = run(existing, monkeypatch)
    assert progress_of(report) == {
        "apps": (0, 1, 0),
        "repositories": (0, 2, 0),
        "watches": (2, 0, 0),
        "files": (4, 0, 0),
    }
    assert report["remark_count"] == 0


def test_watch_that_was_unwatched_during_an_interrupted_import(
    world: World, existing: ExistingService, monkeypatch, imported
) -> None:
    _, app, repository = imported
    AppRepository.objects.update(arriving=True)
    unwatch_as_client(app, repository)
    remove_ended()
    assert UNWATCHED in reasons(run(existing, monkeypatch), "remarks")
    assert not AppRepository.objects.exists()


def test_what_was_imported_in_part_is_reported_until_it_is_complete(existing: ExistingService, monkeypatch) -> None:
    """An interrupted import prints no report, and the next one finds these rows already here."""
    app, repository = existing.app(BASE, token_hash="sha1:whatever"), existing.repository(f"{GIT}/docs")
    existing.watch(app, repository, FILES, github_token_encrypted="not encrypted")
    first = run(existing, monkeypatch)
    assert first["problem_count"] == 2
    for arguments in (["--dry-run"], []):
        again = run(existing, monkeypatch, *arguments)
        assert (progress_of(again)["apps"], progress_of(again)["watches"]) == ((0, 1, 0), (0, 1, 0))
        assert (again["failed"], reasons(again)) == (True, reasons(first))
    rotate_app_token(Actor.command(), App.objects.get(), overlap=timedelta(0))
    AppRepository.objects.update(github_token="ghp_new")
    assert not run(existing, monkeypatch)["failed"]


def test_records_that_were_left_out_are_reported_again(existing: ExistingService, monkeypatch) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES | {".git/hooks/x": b"x"})
    first = run(existing, monkeypatch)
    assert (progress_of(first)["files"], first["failed"]) == ((2, 0, 1), True)
    for arguments in (["--dry-run"], []):
        again = run(existing, monkeypatch, *arguments)
        assert (progress_of(again)["files"], again["failed"], reasons(again)) == ((0, 2, 1), True, reasons(first))


def test_deliveries_of_the_existing_service_after_the_import_are_remarked(
    world: World, existing: ExistingService, monkeypatch, imported
) -> None:
    """It still ran, and delivered content that has been replaced in the repository since. Docora sees no difference."""
    repo, app, repository = imported
    give_copy(world, app.app_id, repository.repository_id, FILES | {"a.txt": b"older"})
    deliver = "UPDATE app_delivered_files SET file_sha = %s, delivered_at = now() WHERE file_path = 'a.txt'"
    existing.connection.execute(deliver, [sha(b"older")])
    world.settle()
    assert world.requests() == []
    another = watch_repository(
        Actor.command(), make_app("Another"), repo.url
    ).watch  # says nothing about the copy of Moved
    unwatch_repository(Actor.command(), another)
    for arguments in (["--dry-run"], []):
        report = run(existing, monkeypatch, *arguments)
        assert reasons(report, "remarks").startswith(f"watch {repo.url} of Moved: The existing service has delivered")
        assert (report["remark_count"], report["failed"]) == (1, False)
    watch = AppRepository.objects.alive().select_related("app", "repository").get()
    resync_single(Actor.command(), watch)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_earlier_deliveries_to_a_watch_made_here_cause_no_remark(
    world: World, existing: ExistingService, monkeypatch, imported
) -> None:
    """Its first sync sent every file, so the app has nothing older."""
    _, app, _ = imported
    repository = existing.repository(world.git.repo("acme/site", FILES).url)
    run(existing, monkeypatch)
    watch = watch_repository(Actor.command(), App.objects.get(app_id=app.app_id), repository.url).watch
    assert watch.repository.repository_id == repository.repository_id
    existing.watch(app, repository, FILES)
    report = run(existing, monkeypatch)
    assert (progress_of(report)["watches"], report["remark_count"]) == ((0, 2, 0), 0)


def test_deliveries_of_the_existing_service_during_the_import_are_reported(
    existing: ExistingService, monkeypatch
) -> None:
    app, docs = existing.app(BASE), existing.repository(f"{GIT}/docs")
    for repository in (docs, existing.repository(f"{GIT}/site")):
        existing.watch(app, repository, FILES)
    original = write.complete_watch

    def complete_while_it_delivers(*arguments, **options) -> bool:
        deliver = "UPDATE app_delivered_files SET delivered_at = now() WHERE repository_id = %s"
        existing.connection.execute(deliver, [existing.ref(docs)])
        return original(*arguments, **options)

    monkeypatch.setattr(write, "complete_watch", complete_while_it_delivers)
    report = run(existing, monkeypatch)
    assert reasons(report).startswith(f"watch {docs.url} of Portal: The existing service has delivered files")
    assert (progress_of(report)["watches"], report["problem_count"]) == ((2, 0, 0), 1)


@pytest.mark.parametrize("ended", ["later", "at once"])
def test_watch_that_a_client_added_during_the_import_stays_unwatched(
    world: World, existing: ExistingService, monkeypatch, ended: str
) -> None:
    app = existing.app(world.receiver.url, "Moved", key=KEY)
    repositories = [existing.repository(world.git.repo(f"acme/{name}", FILES).url) for name in ("docs", "site")]
    for repository in repositories:
        existing.watch(app, repository, FILES)
    original = write.write_records

    def write_while_the_client_watches(watch: AppRepository, *arguments) -> int:
        repositories.sort(key=lambda repository: repository.repository_id != watch.repository.repository_id)
        caller = Caller(App.objects.get(app_id=app.app_id), app.token)
        assert caller.post("", {"github_url": repositories[1].url}).status_code == 201
        if ended == "at once":
            unwatch_as_client(app, repositories[1])
        return original(watch, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(write, "write_records", write_while_the_client_watches)
        assert progress_of(run(existing, monkeypatch))["watches"] == ((1, 1, 0) if ended == "later" else (1, 0, 1))
    if ended == "later":
        unwatch_as_client(app, repositories[1])
    remove_ended()
    report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (0, 1, 1)
    assert UNWATCHED in reasons(report, "remarks")
    kept = [watch.repository.repository_id for watch in AppRepository.objects.alive()]
    assert kept == [repositories[0].repository_id]
