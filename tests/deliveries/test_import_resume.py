"""A killed import continues where it stopped, and nothing is sent for a watch until its import is complete."""

import contextlib
import io
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from deliveries_app.actors import Actor
from deliveries_app.importing import validate, write
from deliveries_app.importing.source import SourceFile, open_source
from deliveries_app.models import App, AppRepository, Delivery, StateDetail, Status
from deliveries_app.reports.next_attempt import next_attempt_of
from deliveries_app.scheduling import request_sync
from deliveries_app.services import delete_app, resync_single, unwatch_repository
from deliveries_app.services.watch_settings import change_watch
from deliveries_app.sweep.cleanup import remove_ended
from docora.cli.output import Bar
from repositories_app.models import Repository
from tests.deliveries.test_import import progress_of, reasons, run
from tests.support.existing import ExistingService
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, sha
from tests.support.processes import forked, in_threads, reap
from tests.support.syncing import sync
from tests.support.world import KEY, World

COUNT = 120
FILES = {f"{number % 7}/file-{number:04}.txt": b"content %d" % number for number in range(COUNT)}
BATCH = 10


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_BATCH", BATCH)


@pytest.fixture
def repos(world: World, existing: ExistingService, monkeypatch) -> list[Repo]:
    """Three repositories that an app of the existing service watches. The app has every file."""
    monkeypatch.setenv("SOURCE_ENCRYPTION_KEY", existing.key)
    app = existing.app(world.receiver.url, "Moved", key=KEY)
    repos = [world.git.repo(f"acme/{name}", FILES) for name in ("one", "two", "three")]
    for repo in repos:
        existing.watch(app, existing.repository(repo.url), FILES)
    return repos


def import_with_hook(existing: ExistingService, batches: int, act) -> None:
    """Run an import in another process, which calls `act` before it writes batch number `batches`."""

    def work() -> None:
        seen = iter(range(1, 1_000_000))
        original = write._insert

        def insert(*arguments) -> None:
            if next(seen) == batches:
                act()
            original(*arguments)

        write._insert = insert
        call_command("import_docora", existing.url, json=True, stdout=io.StringIO())

    reap(forked(work))


def kill_import(existing: ExistingService, batches: int) -> None:
    import_with_hook(existing, batches, lambda: os.kill(os.getpid(), signal.SIGKILL))


def arriving() -> AppRepository:
    return AppRepository.objects.select_related("app", "repository").get(arriving=True)


@pytest.mark.parametrize("batch", [1, 5, 13, 36], ids=lambda batch: f"at batch {batch}")
def test_killed_import_continues(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch, batch: int
) -> None:
    kill_import(existing, batch)
    stored = Delivery.objects.count()
    assert stored == (batch - 1) * BATCH
    complete = AppRepository.objects.filter(arriving=False).count()
    for arguments in (["--dry-run"], []):
        report = run(existing, monkeypatch, *arguments)
        assert progress_of(report)["watches"] == (3 - complete, complete, 0)
        assert progress_of(report)["files"] == ((3 - complete) * COUNT, complete * COUNT, 0)
    assert Delivery.objects.count() == 3 * COUNT
    assert not AppRepository.objects.filter(arriving=True).exists()
    world.settle()
    assert world.requests() == []


def test_source_that_changed_since_the_import_was_killed(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    """The existing service was started again in between, and delivered an update, a delete and a create."""
    kill_import(existing, 5)
    updated, deleted = arriving().deliveries.values_list("path", flat=True)[:2]
    execute = existing.connection.execute
    execute("UPDATE app_delivered_files SET file_sha = %s WHERE file_path = %s", ["b" * 64, updated])
    execute("DELETE FROM app_delivered_files WHERE file_path > '2/' OR file_path = %s", [deleted])
    [(left,)] = execute("SELECT count(*) FROM app_delivered_files")
    for arguments in (["--dry-run"], []):
        assert progress_of(run(existing, monkeypatch, *arguments))["files"] == (left, 0, 0)
    for watch in AppRepository.objects.all():
        assert dict(watch.deliveries.values_list("path", "acknowledged_sha")) == {
            path: "b" * 64 if path == updated else sha(content)
            for path, content in FILES.items()
            if path < "2/" and path != deleted
        }


def test_token_replaced_since_the_import_was_killed(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    """The existing service was started again in between, and its client replaced the token."""
    set_token = partial(existing.connection.execute, "UPDATE app_repositories SET github_token_encrypted = %s")
    set_token([existing.encrypt("old")])
    kill_import(existing, 5)
    assert arriving().github_token == "old"
    set_token([existing.encrypt("new")])
    run(existing, monkeypatch)
    assert {watch.github_token for watch in AppRepository.objects.all()} == {"new"}


def test_token_replaced_here_during_an_interrupted_import_is_kept(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    kill_import(existing, 5)
    watch = arriving()
    change_watch(Actor.command(), watch, github_token="entered-here")
    run(existing, monkeypatch)
    watch.refresh_from_db()
    assert watch.github_token == "entered-here"


def test_incomplete_watch_that_the_source_no_longer_has_is_reported(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    kill_import(existing, 5)
    watch = arriving()
    execute = existing.connection.execute
    gone = "repository_id = (SELECT id FROM repositories WHERE repository_id = %s)"
    for table in ("app_repositories", "app_delivered_files"):
        execute(f"DELETE FROM {table} WHERE {gone}", [watch.repository.repository_id])
    for arguments in (["--dry-run"], []):
        report = run(existing, monkeypatch, *arguments)
        assert reasons(report).startswith(f"watch {watch.github_url} of Moved: An earlier import was interrupted")
        assert (report["failed"], report["problem_count"]) == (True, 1)
    unwatch_repository(Actor.command(), arriving())
    assert not run(existing, monkeypatch)["failed"]


def test_import_that_is_killed_repeatedly_completes(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    for batch in (2, 9, 14):
        kill_import(existing, batch)
    assert progress_of(run(existing, monkeypatch))["watches"][2] == 0
    assert progress_of(run(existing, monkeypatch)) == {
        "apps": (0, 1, 0), "repositories": (0, 3, 0), "watches": (0, 3, 0), "files": (0, 3 * COUNT, 0),
    }  # fmt: skip


def test_arriving_watch_is_neither_checked_nor_synced(
    world: World, existing: ExistingService, repos: list[Repo]
) -> None:
    kill_import(existing, 5)
    watch = arriving()
    assert watch.deliveries.count() == 4 * BATCH
    assert world.check() == 0
    assert not AppRepository.objects.due().filter(pk=watch.pk).exists()
    request_sync(AppRepository.objects.filter(pk=watch.pk))
    assert not sync(watch.pk)
    assert world.requests() == []
    current = AppRepository.objects.with_state().select_related("app", "repository").get(pk=watch.pk)
    assert (current.detail, next_attempt_of(current).message) == (
        StateDetail.IMPORTING,
        "Starts when its records are imported",
    )


def test_resync_of_an_arriving_watch_waits_for_the_import(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    kill_import(existing, 5)
    resync_single(Actor.command(), arriving())
    watch = arriving()
    assert not sync(watch.pk)
    run(existing, monkeypatch)
    world.settle()
    assert {record.path for record in world.requests("create")} == set(FILES)
    assert len(world.requests()) == COUNT  # of this watch only
    watch.refresh_from_db()
    assert (watch.status, watch.generation) == (Status.SYNCED, 2)


def test_watch_that_is_unwatched_during_the_import(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    original = validate.validate_file

    def meanwhile(file: SourceFile) -> SourceFile:
        if file.path == sorted(FILES)[55] and not AppRepository.objects.filter(ended_at__isnull=False).exists():
            unwatch_repository(Actor.command(), arriving())
        return original(file)

    monkeypatch.setattr(validate, "validate_file", meanwhile)
    shown: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Bar, "show", lambda _, __, done, total: shown.append(total - done))
        report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (2, 0, 1)
    assert progress_of(report)["files"] == (2 * COUNT, 0, COUNT)
    assert shown[-1] == 0, "the progress bar is complete"
    assert "It was unwatched here during the import" in reasons(report)
    assert remove_ended() == 1
    assert AppRepository.objects.alive().count() == 2
    world.settle()
    assert world.requests() == []


def test_app_that_is_deleted_during_the_import_gets_no_more_watches(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    """Nothing would ever remove them: they would not have ended."""
    original = validate.validate_file

    def meanwhile(file: SourceFile) -> SourceFile:
        moved = App.objects.get(name="Moved")
        if moved.ended_at is None:
            delete_app(Actor.command(), moved)
        return original(file)

    monkeypatch.setattr(validate, "validate_file", meanwhile)
    report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (0, 0, 3)
    assert "its app or repository was removed" in reasons(report)
    assert remove_ended() == 1
    assert not App.objects.filter(name="Moved").exists()


def test_repository_that_is_removed_during_the_import_gets_no_watch(
    world: World, existing: ExistingService, repos: list[Repo], monkeypatch
) -> None:
    """Its last watch here ended meanwhile."""
    original = write.begin_watch

    def begin(app: App, repository: Repository, *details: str) -> AppRepository | None:
        Repository.objects.filter(pk=repository.pk).delete()
        return original(app, repository, *details)

    monkeypatch.setattr(write, "begin_watch", begin)
    report = run(existing, monkeypatch)
    assert progress_of(report)["watches"] == (0, 0, 3)
    assert "its app or repository was removed" in reasons(report)


def test_other_watches_sync_while_one_is_arriving(world: World, existing: ExistingService, repos: list[Repo]) -> None:
    other, watch = world.watch(FILES)
    kill_import(existing, 5)
    world.sync(watch)
    assert_promise_kept(world, other, watch)
    assert App.objects.get(name="Moved").paused is False


def test_two_concurrent_imports(world: World, existing: ExistingService, repos: list[Repo], monkeypatch) -> None:
    def attempt() -> None:
        with contextlib.suppress(CommandError):  # the later one may fail and ask to be run again
            call_command("import_docora", existing.url, json=True, stdout=io.StringIO())

    in_threads(attempt, attempt)
    assert progress_of(run(existing, monkeypatch))["watches"][2] == 0
    assert (AppRepository.objects.filter(arriving=False).count(), Delivery.objects.count()) == (3, 3 * COUNT)
    world.settle()
    assert world.requests() == []


def test_app_that_is_being_removed_gets_no_watches(existing: ExistingService, repos, monkeypatch) -> None:
    kill_import(existing, 1)
    AppRepository.objects.all().delete()
    delete_app(Actor.command(), App.objects.get(name="Moved"))
    report = run(existing, monkeypatch)
    assert (progress_of(report)["apps"], progress_of(report)["watches"]) == ((0, 0, 1), (0, 0, 3))
    assert not report["failed"]


def test_server_does_not_end_the_long_transaction(existing: ExistingService) -> None:
    timeouts = ["idle_in_transaction_session_timeout", "statement_timeout"]
    if existing.connection.info.server_version >= 170_000:
        timeouts.append("transaction_timeout")
    options = "%20".join(f"-c{name}%3D60s" for name in timeouts)
    with open_source(f"{existing.url}&options={options}") as source:
        assert [source._connection.execute(f"SHOW {name}").fetchone() for name in timeouts] == [("0",)] * len(timeouts)


def test_records_are_read_in_pages(existing: ExistingService) -> None:
    """Without a server-side cursor the driver would hold the whole result, some sixty megabytes here."""
    app, repository = existing.app("http://127.0.0.1:9/"), existing.repository("https://127.0.0.1/acme/big")
    existing.connection.execute(
        "INSERT INTO app_delivered_files SELECT %s, %s, 'folder/file-' || n, repeat('a', 64), now()"
        " FROM generate_series(1, 300000) n",
        [existing.ref(app), existing.ref(repository)],
    )
    with open_source(existing.url) as source:
        (found,), (other,) = source.apps(), source.repositories()
        before = peak = resident()
        for number, _ in enumerate(source.files(source.file_key(found, other))):
            if number % 10_000 == 0:
                peak = max(peak, resident())
    assert number == 299_999
    assert peak - before < 15_000_000


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
