"""Unwatch a repository, watch it again, and delete an app (`engine.md` §9)."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import django_rq
import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError, connections, transaction
from django.db.models.functions import Now

from deliveries_app import jobs
from deliveries_app.actors import Actor
from deliveries_app.importing.write import begin_watch
from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Delivery,
    DeliveryFailure,
    DriftCheck,
    DriftFile,
    DriftKind,
    DriftState,
    Outcome,
    Reason,
    Status,
    SyncRun,
)
from deliveries_app.models.root_causes import RootCause
from deliveries_app.services import (
    cancel_request,
    cancel_sync,
    delete_app,
    resync_many,
    resync_single,
    unwatch_many,
    unwatch_repository,
    watch_repository,
    watch_settings,
)
from deliveries_app.sweep import cleanup
from deliveries_app.sweep.cleanup import enqueue_clean_up, remove_ended
from deliveries_app.sync import lease
from deliveries_app.sync.claim import claim
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT
from repositories_app import services as repositories
from repositories_app.git.exceptions import GitError
from repositories_app.git.url import parse_url
from repositories_app.mirror import cache
from repositories_app.models import Repository
from tests.support.git import Entry
from tests.support.histories import assert_promise_kept, at_notification, refusing, shas
from tests.support.processes import syncing
from tests.support.receiver import wait_for
from tests.support.staff import make_app
from tests.support.world import World

COMMAND = Actor.command()


def unwatch_during_a_sync(world: World, watch: AppRepository, *, requests: int) -> None:
    """Unwatch the repository after more than this many requests, and wait until its worker has stopped."""
    world.make_due(watch)
    worker = syncing(watch.pk)
    wait_for(lambda: len(world.requests()) > requests)
    unwatch_repository(COMMAND, watch)
    worker.join(30)


def test_unwatch_during_a_run(world: World) -> None:
    App.objects.update(max_in_flight=2)
    world.app.refresh_from_db()
    _, watch = world.watch({f"{number:03}.txt": b"x" for number in range(300)})
    world.answer(lambda note: time.sleep(0.02))
    unwatch_during_a_sync(world, watch, requests=10)
    sent = len(world.requests())
    assert sent < 300
    watch.refresh_from_db()
    assert (watch.lease_until, watch.next_sync_at) == (None, None)
    run = world.runs(watch)[0]
    assert run.outcome == Outcome.ENDED
    assert run.files_done == Delivery.objects.filter(watch=watch, acknowledged=True).count() <= sent
    assert claim(watch.pk) is None
    assert world.check() == 0


def test_unwatch_during_a_large_file(world: World, settings) -> None:
    """Nothing is recorded between two chunks, and the lease lasts longer than the file takes."""
    settings.CHUNK_THRESHOLD_BYTES = settings.CHUNK_SIZE_BYTES = 1000
    _, watch = world.watch({"film.mp4": bytes(100_000)})
    world.answer(lambda note: time.sleep(0.1))
    unwatch_during_a_sync(world, watch, requests=2)
    assert len(world.requests()) < 40, "of 134 chunks, of which ten are sent in a second"
    watch.refresh_from_db()
    assert watch.lease_until is None


def test_rows_are_removed_after_the_lease_and_history_stays(world: World) -> None:
    _repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(refusing("b.txt"))
    operation = resync_many(COMMAND, AppRepository.objects.all())
    world.sync(watch)
    mirror = repositories.mirror_of(watch.repository).directory
    assert mirror.exists()
    AppRepository.objects.update(lease_until=Now() + timedelta(seconds=20))
    unwatch_repository(COMMAND, watch)
    assert remove_ended() == 0
    assert Delivery.objects.count() == 2
    AppRepository.objects.update(lease_until=Now() - timedelta(seconds=HOLD_AFTER_TIMEOUT - 1))
    assert remove_ended() == 0  # the app may still be processing what the worker sent
    AppRepository.objects.update(lease_until=Now() - timedelta(seconds=HOLD_AFTER_TIMEOUT + 1))
    assert remove_ended() == 1
    for model in (AppRepository, Delivery, DeliveryFailure, Repository):
        assert not model.objects.exists()
    assert not mirror.exists()
    run = SyncRun.objects.get(operation=operation)
    assert (run.watch, run.app_name, run.repository_name) == (None, "Portal", "acme/widgets")
    assert BulkOperation.objects.get().title == operation.title
    assert App.objects.filter(pk=world.app.pk).exists()


def with_refs(watch: AppRepository) -> set[str]:
    """Return the ids of the watches for which the mirror keeps commits."""
    refs = repositories.mirror_of(watch.repository).directory / "refs/docora"
    return {folder.name for folder in refs.iterdir()}


def test_removal_keeps_a_shared_repository(world: World, monkeypatch) -> None:
    monkeypatch.setattr(cleanup, "_SLICE", 3)
    repo, watch = world.watch({f"{number}.txt": b"x" for number in range(10)})
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    unwatch_repository(COMMAND, watch)
    assert remove_ended() == 1
    other.refresh_from_db()
    assert_promise_kept(world, repo, other)
    assert with_refs(other) == {other.watch_id}


def test_removal_keeps_the_differences_of_other_watches(world: World) -> None:
    _, watch = world.watch()
    _, other = world.watch(name="acme/gadgets")
    for each in (watch, other):
        check = DriftCheck.objects.create(watch=each, requested_by="anna", state=DriftState.DIFFERS, ended_at=Now())
        DriftFile.objects.create(check_of=check, path="readme.md", kind=DriftKind.MISSING, sha="a" * 64, sequence=1)
    unwatch_repository(COMMAND, watch)
    assert remove_ended() == 1
    assert DriftFile.objects.get().check_of.watch == other


def test_watching_again_before_the_removal_revives_the_watch(
    world: World,
) -> None:
    repo, watch = world.watch({"stays.txt": b"1", "goes.txt": b"2"})
    world.settle()
    unwatch_repository(COMMAND, watch)
    repo.commit({"goes.txt": None})
    again = watch_repository(COMMAND, world.app, repo.url)
    assert (again.created, again.watch.pk, again.watch.watch_id) == (True, watch.pk, watch.watch_id)
    assert world.runs(watch)[0].reason == Reason.INITIAL
    assert remove_ended() == 0
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert set(world.copy(watch)) == {"stays.txt"}
    assert [record.kind for record in world.requests()][-2:] == ["delete", "create"]
    sequences = [record.sequence for record in world.requests()]
    assert sequences[-1] > sequences[-2] > max(sequences[:-2])


def drop_copy(world: World, watch: AppRepository) -> None:
    """Remove what the client holds, as it may after an unwatch."""
    shutil.rmtree(world.receiver.directory / watch.app.app_id / watch.repository.repository_id)
    world.receiver._copies.clear()


@pytest.mark.parametrize("cancel", [cancel_request, cancel_sync])
def test_cancel_never_lowers_the_floor_below_an_unwatch(
    world: World, cancel: Callable[[Actor, AppRepository], object]
) -> None:
    """The client may have dropped its copy after the unwatch, so what it acknowledged before never counts again."""
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.settle()
    unwatch_repository(COMMAND, watch)
    drop_copy(world, watch)
    watch_repository(COMMAND, world.app, repo.url)
    assert not cancel_request(COMMAND, watch)  # watching again is not a re-sync
    resync_single(COMMAND, watch)
    assert cancel(COMMAND, watch)
    watch.refresh_from_db()
    assert watch.status == Status.PENDING
    world.sync(watch)
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_revived_watch_has_the_settings_of_a_new_one(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1", "b.md": b"2"})
    watch_settings.change_watch(
        COMMAND, watch, ignore_patterns="*.md", include_patterns="*.txt", exclude_patterns="*.md"
    )
    watch_settings.renew_push_secret(COMMAND, watch)
    world.settle()
    unwatch_repository(COMMAND, watch)
    ended_at = AppRepository.objects.get(pk=watch.pk).ended_at
    assert ended_at is not None
    again = watch_repository(COMMAND, world.app, repo.url).watch
    assert (again.ignore_patterns, again.push_secret) == ("", "")
    assert (again.include_patterns, again.exclude_patterns) == ("", "")
    assert again.created_at >= ended_at
    world.settle()
    assert_promise_kept(world, repo, watch)


def test_revived_watch_starts_like_a_new_one(db, settings) -> None:
    settings.ALLOWED_GIT_HOSTS = ["github.com"]
    portal, search = make_app("Portal"), make_app("Search")

    def watched_by(app: App) -> AppRepository:
        watched = watch_repository(COMMAND, app, "https://github.com/acme/docs", ask_host=False)
        return AppRepository.objects.get(pk=watched.watch.pk)

    watch = watched_by(portal)
    AppRepository.objects.filter(pk=watch.pk).update(
        paused_at=Now(), paused_by="anna", branch="main", moved_at=Now(), last_commit="a", seen_commit="b", base_commit="a",
        base_rules="r", tree_files=1, tree_bytes=1, files_failing=1, deletes_failing=1, left_out={"symlink": 1},
        last_synced_at=Now(), push_secret="s", failing_since=Now(), root_cause=RootCause.TIMEOUT, last_error="It failed.",
        retry_count=1,
    )  # fmt: skip
    unwatch_repository(COMMAND, watch)
    again, new = watched_by(portal), watched_by(search)
    names = [field.attname for field in AppRepository._meta.concrete_fields]
    numbers = {"generation", "resend_floor", "lowest_floor", "request_count"}
    own = {"id", "app_id", "watch_id", "created_at", "next_check_at", "next_sync_at", *numbers}
    assert {name for name in names if getattr(again, name) != getattr(new, name)} - own == set()


def test_revived_watch_has_no_commit_yet(world: World) -> None:
    """With that of the ended watch, it was shown as synced with 0 files, and it failed in a repository without a commit."""
    repo, watch = world.watch({})
    world.settle()
    unwatch_repository(COMMAND, watch)
    shutil.rmtree(repo.path)
    world.git.repo(repo.name)
    again = watch_repository(COMMAND, world.app, repo.url).watch
    assert (again.pk, again.last_commit, again.last_synced_at) == (watch.pk, "", None)
    assert not again.is_counted
    assert world.sync(again).waits_for_first_commit


@pytest.mark.parametrize(("seconds", "removed"), [(HOLD_AFTER_TIMEOUT, 0), (3600, 1)])
def test_removal_waits_for_requests_of_a_dead_process(world: World, seconds: float, removed: int) -> None:
    """But not for a time that was written while the database's clock was ahead."""
    _, watch = world.watch()
    unwatch_repository(COMMAND, watch)
    AppRepository.objects.update(doubt_until=Now() + timedelta(seconds=seconds))
    assert remove_ended() == removed


def test_revived_watch_lists_no_failures(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"1", "b.txt": b"2", "link": Entry.symlink("a.txt")})
    world.answer(refusing("a.txt", "b.txt"))
    assert world.sync(watch).files_failing == 2
    assert watch.left_out
    unwatch_repository(COMMAND, watch)
    again = watch_repository(COMMAND, world.app, repo.url).watch
    assert (again.pk, again.files_failing, again.left_out, again.failures.count()) == (watch.pk, 0, {}, 0)
    assert (again.is_failing, again.last_error) == (False, "")
    world.answer(None)
    world.settle()
    watch.refresh_from_db()
    assert world.copy(watch) == shas({"a.txt": b"1", "b.txt": b"2"})
    assert watch.files_failing == 0


def test_watch_that_is_revived_without_all_its_records_has_a_new_id(world: World, monkeypatch) -> None:
    """A new id tells the client to drop a copy that it kept: a file without a record could not be deleted there."""
    monkeypatch.setattr(cleanup, "_SLICE", 2)
    repo, watch = world.watch({f"{number}.txt": b"x" for number in range(5)})
    world.settle()
    unwatch_repository(COMMAND, watch)
    cleanup._remove_slice(watch.pk, Delivery.objects.filter(watch=watch).order_by("path"), "path")
    assert Delivery.objects.count() == 3
    again = watch_repository(COMMAND, world.app, repo.url).watch
    assert again.pk == watch.pk
    assert again.watch_id != watch.watch_id
    world.settle()
    assert_promise_kept(world, repo, again)
    assert {record.webhook_id.split("_")[1] for record in world.requests()[-5:]} == {again.watch_id}


def test_watch_that_is_revived_during_its_removal(world: World, monkeypatch) -> None:
    repo, watch = world.watch()
    world.settle()
    unwatch_repository(COMMAND, watch)
    original = cleanup._remove_slices

    def remove_and_revive(watch_pk: int, stop: Callable[[], bool]) -> None:
        original(watch_pk, stop)
        watch_repository(COMMAND, world.app, repo.url)

    monkeypatch.setattr(cleanup, "_remove_slices", remove_and_revive)
    assert remove_ended() == 0
    watch.refresh_from_db()
    assert watch.ended_at is None
    world.settle()
    watch.refresh_from_db()
    assert_promise_kept(world, repo, watch)
    assert with_refs(watch) == {watch.watch_id}


def test_watch_that_is_revived_before_its_removal_keeps_its_records(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    check = DriftCheck.objects.create(watch=watch, requested_by="anna", state=DriftState.DIFFERS, ended_at=Now())
    DriftFile.objects.create(check_of=check, path="readme.md", kind=DriftKind.MISSING, sha="a" * 64, sequence=1)
    unwatch_repository(COMMAND, watch)
    again = []

    def revive() -> bool:
        if not again:
            again.append(watch_repository(COMMAND, world.app, repo.url).watch)
        return False

    assert remove_ended(stop=revive) == 0
    assert (again[0].pk, again[0].watch_id) == (watch.pk, watch.watch_id)
    assert (watch.deliveries.count(), check.files.count()) == (1, 1)


def test_app_keeps_the_highest_number_of_its_removed_watches(watches, tmp_path: Path, settings) -> None:
    settings.REPOS_DIR = tmp_path
    for watch, high in zip(watches, (2000, 1000, 3000), strict=True):
        AppRepository.objects.filter(pk=watch.pk).update(ended_at=Now(), sequence_high=high)
    assert remove_ended() == 3
    assert list(App.objects.order_by("name").values_list("sequence_high", flat=True)) == [2000, 3000]


def test_last_watch_is_removed_together_with_its_repository(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the worker died, or lost the database, between the two, nothing would ever remove the repository."""
    _, watch = world.watch()
    world.settle()
    unwatch_repository(COMMAND, watch)
    mirror = repositories.mirror_of(watch.repository)
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "delete", Mock(side_effect=OperationalError))
        with pytest.raises(OperationalError):
            remove_ended()
    assert AppRepository.objects.filter(pk=watch.pk).exists()
    assert remove_ended() == 1
    assert not Repository.objects.exists()
    assert not mirror.directory.exists()


def test_clean_up_stops_between_two_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_SLICE", 1)
    _, watch = world.watch({"a.txt": b"1", "b.txt": b"2", "c.txt": b"3"})
    world.settle()
    unwatch_repository(COMMAND, watch)
    answers = [False]
    assert remove_ended(stop=lambda: answers.pop() if answers else True) == 0
    assert watch.deliveries.count() == 2
    assert remove_ended() == 1


def test_clean_up_leaves_the_refs_while_another_process_fetches(world: World) -> None:
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    unwatch_repository(COMMAND, watch)
    mirror = repositories.mirror_of(other.repository)
    with mirror._lock("fetch"):
        assert remove_ended() == 1
    assert with_refs(other) == {watch.watch_id, other.watch_id}
    mirror.remove_stale_refs(other.repository.watches.watch_ids)
    assert with_refs(other) == {other.watch_id}


def test_clean_up_does_not_wait_for_a_frozen_process(world: World) -> None:
    """A frozen worker holds its lock on the mirror for as long as it is frozen. All other removals would wait for it."""
    _, watch = world.watch(name="acme/first")
    _, other = world.watch(name="acme/second")
    world.settle()
    unwatch_many(COMMAND, [watch, other])
    mirror = repositories.mirror_of(watch.repository)

    def clean_up() -> int:
        try:
            return remove_ended()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool, mirror.in_use_nowait():
        assert pool.submit(clean_up).result(20) == 2
    assert not Repository.objects.exists()
    assert mirror.directory.exists()
    cache.maintain()  # as after each job
    assert not mirror.directory.exists()


def test_watching_again_after_the_removal_creates_a_new_watch(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    unwatch_repository(COMMAND, watch)
    jobs.clean_up("ended")
    again = watch_repository(COMMAND, world.app, repo.url)
    assert again.created
    assert again.watch.watch_id != watch.watch_id
    world.settle()
    again.watch.refresh_from_db()
    assert_promise_kept(world, repo, again.watch)


def test_client_that_kept_its_copy_deletes_files_removed_meanwhile(world: World) -> None:
    """Once no row is left, no delete can be sent for them. The client sees that the watch is another one."""
    repo, watch = world.watch({"stays.txt": b"1", "goes.txt": b"2"})
    world.watch_url(repo, app=world.add_app("Other"))  # keeps the repository's id
    world.settle()
    unwatch_repository(COMMAND, watch)
    assert remove_ended() == 1
    repo.commit({"goes.txt": None})
    again = watch_repository(COMMAND, world.app, repo.url).watch
    assert again.repository.repository_id == watch.repository.repository_id
    assert set(world.copy(again)) == {"stays.txt", "goes.txt"}
    world.settle()
    again.refresh_from_db()
    assert_promise_kept(world, repo, again)
    assert set(world.copy(again)) == {"stays.txt"}
    assert [record for record in world.requests("delete") if record.app_id == world.app.app_id] == []


def test_new_watch_continues_above_the_numbers_of_the_removed_one(world: World, monkeypatch) -> None:
    """The database's clock is an hour back: with lower numbers, the client would take everything for old."""
    repo, watch = world.watch({"a.txt": b"1"})
    world.watch_url(repo, app=world.add_app("Other"))  # keeps the repository's row, and so its id
    world.settle()
    unwatch_repository(COMMAND, watch)
    assert remove_ended() == 1
    microseconds = lease._microseconds
    monkeypatch.setattr(lease, "_microseconds", lambda clock: microseconds(clock) - 3_600_000_000)
    repo.commit({"a.txt": None, "b.txt": b"2"})
    again = watch_repository(COMMAND, world.app, repo.url).watch
    world.settle()
    assert_promise_kept(world, repo, again)


def test_watching_again_after_an_interrupted_import(world: World) -> None:
    repo = world.git.repo("acme/widgets", {"a.txt": b"1"})
    url = parse_url(repo.url)
    with transaction.atomic():
        repository = repositories.find_or_create(url, is_private=False)
    watch = begin_watch(world.app, repository, url.spelled, "")
    unwatch_repository(COMMAND, watch)
    again = watch_repository(COMMAND, world.app, repo.url).watch
    assert again.watch_id != watch.watch_id  # not all records were imported
    world.settle()
    assert_promise_kept(world, repo, again)


def test_watching_again_replaces_the_token_and_resyncs(world: World) -> None:
    repo = world.git.repo("acme/private", {"a.txt": b"1", "b.txt": b"2"}, token="old")
    watch = world.sync(world.watch_url(repo, token="old"))
    world.git.tokens["acme/private"] = {"new"}
    again = watch_repository(COMMAND, world.app, f"{repo.url}.git", github_token="new")
    assert (again.created, again.watch.pk) == (False, watch.pk)
    assert again.watch.github_url == f"{repo.url}.git"
    watch = world.sync(watch)
    assert watch.github_token == "new"
    assert_promise_kept(world, repo, watch)
    assert len(world.requests()) == 4
    run = world.runs(watch)[0]
    assert (run.reason, run.outcome, run.files_done) == (Reason.RESYNC, Outcome.SUCCEEDED, 2)
    assert Repository.objects.get().is_private  # it was read with a token
    world.git.tokens.clear()
    assert watch_repository(COMMAND, world.app, repo.url).watch.github_token == ""


def test_failed_registration_promises_no_retry(world: World) -> None:
    """Nothing is registered, so nothing retries. A watched repository is retried."""
    repo, watch = world.watch()
    world.git.server.stop()
    with pytest.raises(GitError) as failed:
        watch_repository(COMMAND, world.add_app("Other"), repo.url)
    assert str(failed.value).endswith("Check the URL and this server's network. Try again later.")
    assert AppRepository.objects.count() == 1
    world.sync(watch)
    watch.refresh_from_db()
    assert watch.last_error.endswith("Check the URL and this server's network. Docora retries automatically.")


def test_token_that_cannot_read_the_repository_changes_nothing(world: World) -> None:
    repo = world.git.repo("acme/private", {"a.txt": b"1"}, token="good")
    watch = world.sync(world.watch_url(repo, token="good"))
    with pytest.raises(GitError):
        watch_repository(COMMAND, world.app, repo.url, github_token="bad")
    with pytest.raises(ValidationError):
        watch_repository(COMMAND, world.app, repo.url, github_token="with space")
    watch.refresh_from_db()
    assert (watch.github_token, watch.status, watch.generation) == ("good", Status.SYNCED, 1)


def test_unwatch_removes_the_waiting_job(world: World) -> None:
    _, watch = world.watch()
    assert django_rq.get_queue("high").get_job_ids() == [watch.job_id]
    with transaction.atomic():
        unwatch_repository(COMMAND, watch)
        assert django_rq.get_queue("high").get_job_ids() == [watch.job_id]
    assert django_rq.get_queue("high").get_job_ids() == []
    enqueue_clean_up()
    assert django_rq.get_queue("low").get_job_ids() == ["clean-up"]


def test_delete_app_ends_only_its_own_watches(world: World) -> None:
    repo, watch = world.watch()
    _, second = world.watch(name="acme/gadgets")
    other = world.watch_url(repo, app=world.add_app("Other"))
    operation = resync_many(COMMAND, AppRepository.objects.filter(app=world.app), app=world.app)
    world.answer(at_notification(1, lambda: delete_app(COMMAND, App.objects.get(pk=world.app.pk))))
    world.sync(watch)
    assert {run.outcome for run in SyncRun.objects.filter(watch__in=[watch, second])} <= {
        Outcome.ENDED,
        Outcome.SUPERSEDED,
    }
    assert set(AppRepository.objects.alive()) == {other}
    assert remove_ended() == 2
    assert not App.objects.filter(pk=world.app.pk).exists()
    operation.refresh_from_db()
    assert (operation.app, operation.ended_at is not None) == (None, True)
    world.answer(None)
    world.settle()
    other.refresh_from_db()
    assert_promise_kept(world, repo, other)
    assert not Path(repositories.mirror_of(second.repository).directory).exists()
