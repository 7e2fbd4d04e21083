"""What counts for a repository's circuit although its host answers, and which watches are released when it closes."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Notice, StateDetail, Status, WatchState
from deliveries_app.models.root_causes import RootCause
from deliveries_app.monitoring.counts import count_watches
from deliveries_app.reports.next_attempt import next_attempt_of
from deliveries_app.reports.queue import read_queue
from deliveries_app.services import (
    cancel_request,
    pause_watches,
    resume_watches,
    resync_single,
    unwatch_repository,
    watch_repository,
)
from deliveries_app.services.watch_settings import change_watch
from deliveries_app.sync import circuit
from docora.db.clock import from_now
from repositories_app import services as repositories
from repositories_app.git import errors as git_errors
from repositories_app.git.exceptions import Cause
from repositories_app.models import Repository
from tests.support.git import Repo
from tests.support.histories import assert_promise_kept, kill_worker
from tests.support.raw_objects import FILE, blob, serve, tree
from tests.support.world import World


def serve_unsorted_tree(repo: Repo) -> None:
    serve(repo, tree(repo, *((FILE, name, blob(repo)) for name in (b"b", b"a"))))


def serve_folder_as_file(repo: Repo, branch: str = "main") -> None:
    folder = tree(repo, (FILE, b"a", blob(repo)))
    serve(repo, tree(repo, (FILE, b"file", folder)), branch)


def failing(method: str, target: str) -> int:
    return 503


def due() -> set[int]:
    return set(AppRepository.objects.due().values_list("pk", flat=True))


def two_watches_behind_an_open_circuit(world: World, settings) -> tuple[Repo, AppRepository, AppRepository]:
    """Return a repository whose circuit has just opened, with two watches that got a notice and wait for the cooldown."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    world.git.server.on_request = failing
    for each in (watch, other, watch, other):  # the first one's failure does not count: `other` could still read it
        world.sync(each)
    assert Repository.objects.get().circuit_is_open
    assert due() == set()
    return repo, watch, other


def details() -> list[StateDetail]:
    return [watch.detail for watch in AppRepository.objects.with_state().order_by("pk")]


def test_watch_that_was_paused_waits_for_the_circuit_like_the_others(world: World, settings) -> None:
    """It has not failed itself. Before the notice is sent and after it, every number counts it as on hold."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    pause_watches(Actor.command(), AppRepository.objects.filter(pk=other.pk))
    world.git.server.on_request = failing
    world.sync(watch)
    resume_watches(Actor.command(), AppRepository.objects.filter(pk=other.pk))
    assert (due(), details()) == ({watch.pk, other.pk}, [StateDetail.CIRCUIT_OPEN] * 2)
    counts = count_watches()
    assert (counts.due, counts.held, counts.by_state[WatchState.ON_HOLD]) == (0, 2, 2)
    assert (read_queue().counts.due, read_queue().counts.held) == (counts.due, counts.held)
    world.sync(watch)
    world.sync(other)
    assert not Notice.objects.exists()
    assert (due(), details()) == (set(), [StateDetail.CIRCUIT_OPEN] * 2)
    for each in AppRepository.objects.for_pages():
        assert each.waits_until == each.repository.circuit_open_until
        at = next_attempt_of(each).at
        assert at is not None
        assert timedelta(0) <= at - each.waits_until < timedelta(minutes=1)  # the attempt has taken a moment


def test_only_a_requested_sync_is_the_circuits_probe(world: World, settings) -> None:
    """A cancelled one isn't, and its watch waits again."""
    _, _, other = two_watches_behind_an_open_circuit(world, settings)
    resync_single(Actor.command(), other)
    assert details() == [StateDetail.CIRCUIT_OPEN, StateDetail.RETRYING]
    cancel_request(Actor.command(), other)
    assert details() == [StateDetail.CIRCUIT_OPEN] * 2
    world.sync(other)
    assert (due(), details()) == (set(), [StateDetail.CIRCUIT_OPEN] * 2)


@pytest.mark.parametrize(
    ("serve", "reason", "text"),
    [
        (serve_unsorted_tree, "other", "its tree is malformed"),
        (serve_folder_as_file, "corrupt", "after its mirror was rebuilt: object"),
    ],
    ids=["tree", "content"],
)
def test_broken_repository_opens_its_circuit(world: World, settings, serve, reason: str, text: str) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 3
    repo, watch = world.watch()
    world.settle()
    serve(repo)
    for count in (1, 2, 3):
        Repository.objects.update(last_failure_at=Now() - timedelta(hours=1))
        world.sync(watch)
        repository = Repository.objects.get()
        assert (repository.consecutive_failures, repository.circuit_is_open) == (count, count == 3)
        assert (repository.last_error_cause, text in repository.last_error) == (reason, True), repository.last_error
    said: list[dict[str, dict[str, str]]] = []
    world.answer(lambda note: said.append(note.payload) if note.kind == "sync_failed" else None)  # type: ignore[func-returns-value]
    world.sync(watch)
    assert [body["error"]["reason"] for body in said] == [reason]
    world.answer(None)
    repo.force_push({"repaired": b"r"})
    Repository.objects.update(circuit_open_until=timezone.now() - timedelta(seconds=1))
    world.sync(watch)
    assert_promise_kept(world, repo, watch)
    repository.refresh_from_db()
    assert (repository.consecutive_failures, repository.circuit_open_until, repository.last_error) == (0, None, "")


def test_failure_below_a_threshold_that_was_raised_does_not_wait_for_the_circuit(world: World, settings) -> None:
    """The time until which the circuit was open is over, and stays in the row."""
    _, watch, _ = two_watches_behind_an_open_circuit(world, settings)
    Repository.objects.update(circuit_open_until=from_now(-60), last_failure_at=from_now(-86_400))
    settings.CIRCUIT_BREAKER_THRESHOLD = 5
    failure = git_errors.temporary(Cause.NETWORK, "The connection was lost.")
    assert circuit.record_git_failure(watch.repository, failure) == 0.0
    assert not Repository.objects.get().circuit_is_open


@pytest.mark.parametrize("token", ["", "expired"])
def test_missing_repository_or_refused_token_sends_no_notice(
    world: World, settings, client: Client, token: str
) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    _, watch = world.watch()
    world.settle()
    AppRepository.objects.filter(pk=watch.pk).update(github_token=token)
    world.git.server.on_request = lambda *_: 401 if token else 404
    world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "auth" if token else "not_found")
    assert not Notice.objects.exists()
    reference = client.get("/docs/webhooks/").text
    assert "not sent if the repository is missing or your app's token can't read it" in reference


def watched_by_a_stranger(world: World) -> tuple[Repo, AppRepository, AppRepository]:
    """Return a private repository, the watch that can read it, and another app's, which can't."""
    repo = world.git.repo("acme/private", {"one": b"1"}, token="valid")
    watch = world.watch_url(repo, token="valid")
    return repo, watch, watch_repository(Actor.command(), world.add_app("Other"), repo.url, ask_host=False).watch


def assert_refused_app_gets_no_notice(world: World, repo: Repo, watch: AppRepository, refused: AppRepository) -> None:
    """Damage the repository's tree, which only `watch` can find out, and assert that only its app gets a notice."""
    serve_unsorted_tree(repo)
    world.sync(refused)
    assert refused.root_cause == RootCause.GIT_NOT_FOUND
    world.sync(watch)
    assert Repository.objects.get().circuit_is_open
    assert [notice.watch for notice in Notice.objects.all()] == [watch]


def test_app_that_cannot_read_a_private_repository_gets_no_notice_about_it(world: World, settings) -> None:
    """The notice would say what another app's token has found there."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, watch, stranger = watched_by_a_stranger(world)
    world.settle()
    assert_refused_app_gets_no_notice(world, repo, watch, refused=stranger)


def test_app_that_has_never_read_a_private_repository_gets_no_notice_about_it(world: World, settings) -> None:
    """It paused its watch before the first attempt, which would have been refused."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, watch, stranger = watched_by_a_stranger(world)
    pause_watches(Actor.command(), AppRepository.objects.filter(pk=stranger.pk))
    world.sync(watch)
    serve_unsorted_tree(repo)
    world.sync(watch)
    assert Repository.objects.get().circuit_is_open
    assert [notice.watch for notice in Notice.objects.all()] == [watch]


def test_app_that_can_no_longer_read_a_repository_gets_no_notice_about_it(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, former = world.watch(name="acme/docs")
    watch = world.watch_url(repo, app=world.add_app("Other"), token="valid")
    world.settle()
    world.git.tokens["acme/docs"] = {"valid"}
    assert_refused_app_gets_no_notice(world, repo, watch, refused=former)


def test_app_that_cannot_read_a_private_repository_does_not_learn_where_it_has_moved(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    _, watch, stranger = watched_by_a_stranger(world)
    world.settle()
    world.git.server.on_request = lambda *_: 301 if world.git.server.requests[-1].token else None
    world.sync(stranger)
    assert (stranger.root_cause, stranger.last_error_cause) == (RootCause.GIT_NOT_FOUND, "not_found")
    world.sync(watch)
    assert stranger.last_error != watch.last_error
    assert [notice.watch for notice in Notice.objects.all()] == [watch]


def test_first_attempt_that_opens_the_circuit_sends_a_notice(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    _, watch = world.watch()
    world.git.server.on_request = failing
    world.sync(watch)
    assert [notice.watch for notice in Notice.objects.all()] == [watch]


def test_watches_with_the_same_error_get_a_notice(world: World, settings) -> None:
    """Although neither of them has ever read the repository."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.git.server.on_request = failing
    for each in (watch, other):
        world.sync(each)
    assert {notice.watch for notice in Notice.objects.all()} == {watch, other}


def test_moved_repository_sends_a_notice_as_the_reference_says(world: World, settings, client: Client) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 2
    _, watch = world.watch()
    world.settle()
    world.git.server.on_request = lambda *_: 301
    for _ in range(2):
        Repository.objects.update(last_failure_at=Now() - timedelta(hours=1))
        world.sync(watch)
    assert '"reason":"not_found"' in Notice.objects.get(watch=watch).fields.replace(" ", "")
    assert "because the repository has moved, it is sent" in client.get("/docs/webhooks/").text


def test_failure_of_one_watch_does_not_count_while_another_can_read(world: World, settings) -> None:
    """The host redirects requests without a token to its sign-in page. The other watch need not have read it lately."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, without_token = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"), token="valid")
    world.settle()
    world.git.server.on_request = lambda *_: None if world.git.server.requests[-1].token else 302
    for _ in range(2):
        world.sync(without_token)
        assert (without_token.last_error_cause, Repository.objects.get().consecutive_failures) == ("not_found", 0)
    unasked = {"last_scanned_at": from_now(-86_400), "root_cause": RootCause.TIMEOUT, "failing_since": Now()}
    AppRepository.objects.filter(pk=other.pk).update(**unasked)  # its endpoint has been down for a day
    world.sync(without_token)
    assert not Repository.objects.get().circuit_is_open
    AppRepository.objects.filter(pk=other.pk).update(paused_at=Now())  # so it no longer asks the host
    world.sync(without_token)
    assert Repository.objects.get().circuit_is_open


def test_watch_that_has_ended_does_not_keep_the_circuit_closed(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    unwatch_repository(Actor.command(), other)
    world.git.server.on_request = failing
    world.sync(watch)
    assert Repository.objects.get().circuit_is_open
    assert [notice.watch for notice in Notice.objects.all()] == [watch]


def test_invalid_rules_do_not_count_for_the_circuit(world: World, settings) -> None:
    repo, watch, _ = two_watches_behind_an_open_circuit(world, settings)
    world.git.server.on_request = None
    repo.commit({".docoraignore": b"x" * 70_000})
    Repository.objects.update(circuit_open_until=timezone.now() - timedelta(seconds=1))
    world.sync(watch)
    repository = Repository.objects.get()
    assert (watch.last_error_cause, repository.consecutive_failures) == ("rules", 0)
    assert repository.circuit_open_until is None


def test_one_watch_probes_after_the_circuit_cooldown(world: World, settings) -> None:
    _, watch, other = two_watches_behind_an_open_circuit(world, settings)
    Repository.objects.update(circuit_open_until=timezone.now() - timedelta(seconds=1))
    world.git.server._log.clear()
    for each in (watch, other):
        world.sync(each)
    assert len(world.git.server.requests) == 1
    assert Repository.objects.get().circuit_is_open
    assert not Notice.objects.exists(), "it is the same opening"


def test_successful_probe_releases_the_other_watches(world: World, settings) -> None:
    repo, watch, other = two_watches_behind_an_open_circuit(world, settings)
    world.git.server.on_request = None
    resync_single(Actor.command(), watch)
    due_meanwhile: list[set[int]] = []
    world.answer(lambda note: due_meanwhile.append(due()))
    world.sync(watch)
    assert due_meanwhile == [{watch.pk, other.pk}], "they don't wait until the probe has sent its files"
    assert due() == {other.pk}
    world.answer(None)
    repo.commit({"new": b"n"})
    world.sync(other)
    assert_promise_kept(world, repo, other)
    assert due() == set()


def test_new_token_that_works_closes_the_circuit(world: World, settings) -> None:
    _, watch, other = two_watches_behind_an_open_circuit(world, settings)
    world.git.server.on_request = None
    change_watch(Actor.command(), watch, github_token="")
    assert due() == {watch.pk, other.pk}


def test_interrupted_notice_keeps_its_sequence(world: World, settings) -> None:
    settings.CIRCUIT_BREAKER_THRESHOLD = 1
    _, watch = world.watch()
    world.settle()
    world.git.server.on_request = failing
    world.sync(watch)
    kill_worker(world, watch, lambda note: note.kind == "sync_failed", processed=False)
    assert due() == {watch.pk}
    world.sync(watch)
    attempts = world.requests("sync_failed")
    assert len(attempts) == 2
    assert len({(record.webhook_id, record.sequence) for record in attempts}) == 1
    assert not Notice.objects.exists()


def open_circuit() -> None:
    Repository.objects.update(consecutive_failures=1, last_failure_at=Now(), circuit_open_until=from_now(1800))


def test_run_that_read_before_the_failure_does_not_close_the_circuit(world: World) -> None:
    """A long first sync ends after another watch's fetch has opened the circuit."""
    _, watch = world.watch({"a": b"a"})
    world.answer(lambda note: open_circuit() if note.kind == "create" else None)
    world.sync(watch)
    assert Repository.objects.get().circuit_is_open


def test_circuit_that_opened_after_the_claim_releases_the_other_watches(world: World) -> None:
    repo, watch = world.watch()
    other = world.watch_url(repo, app=world.add_app("Other"))
    world.settle()
    repo.commit({"a": b"new"})
    opened = []

    def open_before_answering(method: str, target: str) -> None:
        if not opened:
            opened.append(target)
            open_circuit()
            AppRepository.objects.filter(pk=other.pk).update(next_sync_at=from_now(1800))

    world.git.server.on_request = open_before_answering
    world.sync(watch)
    assert opened
    assert not Repository.objects.get().circuit_is_open
    assert due() == {other.pk}


def test_circuit_that_opens_while_another_run_closes_it_stays_open(world: World, settings, monkeypatch) -> None:
    """That run read the repository before this failure."""
    settings.CIRCUIT_BREAKER_THRESHOLD = 2
    _, watch = world.watch()
    failure = git_errors.temporary(Cause.NETWORK, "The git host returned HTTP 500.")
    circuit.record_git_failure(watch.repository, failure)
    Repository.objects.update(last_failure_at=Now() - timedelta(hours=1))
    read = repositories.is_failing

    def read_and_fail(repository: Repository) -> bool:
        is_failing = read(repository)
        circuit.record_git_failure(Repository.objects.get(), failure)
        return is_failing

    monkeypatch.setattr(repositories, "is_failing", read_and_fail)
    circuit.close_circuit(watch.repository, read_at=timezone.now() - timedelta(minutes=1))
    assert Repository.objects.get().circuit_is_open
