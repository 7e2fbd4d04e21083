"""A failing watch: since when, its root cause and the app's response, over its whole history."""

from datetime import timedelta

import pytest
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status, root_causes
from deliveries_app.models.root_causes import RootCause
from deliveries_app.receiver import Answer
from deliveries_app.services import cancel_request, resync_single, retry_single, unwatch_repository, watch_repository
from deliveries_app.services.control import reset_circuits
from deliveries_app.services.watch_settings import change_watch
from docora.db.clock import from_now
from docora.templatetags.docora import files_of
from repositories_app.git.exceptions import Cause as GitCause
from repositories_app.models import Repository
from tests.support.histories import refusing
from tests.support.world import KEY, World

COMMAND = Actor.command()
NOTHING = (None, "", None, "", "", "")


def failure(watch: AppRepository) -> tuple[object, ...]:
    """Return every column about a failure."""
    watch.refresh_from_db()
    return (
        watch.failing_since,
        watch.root_cause,
        watch.last_status_code,
        watch.last_response,
        watch.last_error,
        watch.last_error_cause,
    )


@pytest.fixture
def failing(world: World) -> AppRepository:
    """A watch whose first attempt failed an hour ago, because the client answered 500."""
    _, watch = world.watch({"bad.txt": b"1", "good.txt": b"2"})
    world.answer(lambda note: Answer(500, {"error": "out of disk"}) if note.path == "bad.txt" else None)
    world.sync(watch)
    AppRepository.objects.filter(pk=watch.pk).update(failing_since=timezone.now() - timedelta(hours=1))
    watch.refresh_from_db()
    return watch


def test_error_of_different_failures_names_the_latest(world: World) -> None:
    App.objects.update(max_in_flight=1)
    _, watch = world.watch({"a.txt": b"1", "b.txt": b"2"})
    world.answer(lambda note: Answer(500 if note.path == "a.txt" else 400))
    world.sync(watch)
    assert watch.last_error == "2 files couldn't be delivered. The latest error: The app returned HTTP 400."


def test_refused_delete_is_not_a_missing_file(world: World) -> None:
    """The app has acknowledged every file of the tree. The list of files said 0 / 1."""
    repo, watch = world.watch({"old.txt": b"1", "kept.txt": b"2"})
    world.settle()
    repo.commit({"old.txt": None})
    world.answer(refusing("old.txt"))
    world.sync(watch)
    assert (watch.tree_files, watch.files_failing, files_of(watch)) == (1, 1, "1")
    repo.commit({"new.txt": b"3"})
    world.answer(refusing("old.txt", "new.txt"))
    world.sync(watch)
    assert (watch.tree_files, watch.files_failing, files_of(watch)) == (2, 2, "1 / 2")
    world.answer(None)
    world.sync(watch)
    assert (watch.files_failing, watch.deletes_failing, files_of(watch)) == (0, 0, "2")


def test_sync_after_a_pause_by_410_is_a_retry(world: World) -> None:
    _, watch = world.watch({"a.txt": b"1", "b.txt": b"2", "c.txt": b"3"})
    world.answer(lambda note: Answer(410))
    world.sync(watch)
    App.objects.update(paused=False, paused_reason="")
    world.answer(None)
    world.sync(watch)
    assert list(watch.runs.order_by("pk").values_list("reason", "outcome")) == [
        ("initial", "paused"),
        ("retry", "succeeded"),
    ]


# --- Since when ----------------------------------------------------------------------------------------------------------


def test_first_failure_sets_failing_since_and_cause(world: World, failing: AppRepository) -> None:
    assert failing.is_failing
    assert (failing.root_cause, failing.last_status_code) == ("http_5xx", 500)
    assert "out of disk" in failing.last_response
    assert failing.last_error == "1 file couldn't be delivered. The app returned HTTP 500."
    assert list(AppRepository.objects.failing()) == [failing]


def test_later_failures_keep_failing_since(world: World, failing: AppRepository) -> None:
    since = failing.failing_since
    world.answer(refusing("bad.txt", status=403))
    assert failure(world.sync(failing))[:3] == (since, "refused", 403)
    world.receiver.stop()
    assert failure(world.sync(failing))[:4] == (since, "connection", None, "")
    world.receiver.start()


def test_failing_since_survives_giving_up_and_rescans(world: World, settings, failing) -> None:
    settings.MAX_RETRY_ATTEMPTS = 2
    since = failing.failing_since
    assert world.sync(failing).status == Status.FAILED
    assert world.sync(failing).failing_since == since


def test_success_clears_failing_since(world: World, failing: AppRepository) -> None:
    world.answer(None)
    world.sync(failing)
    assert failure(failing) == NOTHING
    assert not AppRepository.objects.failing().exists()


def test_resync_keeps_failing_since_until_it_succeeds(world: World, failing: AppRepository) -> None:
    before = failure(failing)
    resync_single(COMMAND, failing)
    assert failure(failing) == before
    assert world.sync(failing).failing_since == failing.failing_since
    world.answer(None)
    world.sync(failing)
    assert failure(failing) == NOTHING


def test_new_repository_token_clears_failing_since(world: World, failing: AppRepository) -> None:
    change_watch(COMMAND, failing, github_token="ghp_other")
    assert failure(failing) == NOTHING


@pytest.mark.parametrize("verb", ["retry", "cancelled retry", "reset circuit"])
def test_manual_retry_keeps_failing_since(world: World, failing, verb: str) -> None:
    before = failure(failing)
    if verb == "reset circuit":
        reset_circuits(COMMAND, [failing.repository])
    else:
        retry_single(COMMAND, failing)
    if verb == "cancelled retry":
        cancel_request(COMMAND, failing)
    assert failure(failing) == before


def test_unwatched_repository_is_not_failing(world: World, failing) -> None:
    unwatch_repository(COMMAND, failing)
    assert not AppRepository.objects.failing().exists()
    watch_repository(COMMAND, world.app, failing.github_url)
    assert failure(failing) == NOTHING


def test_removed_app_has_nothing_failing(world: World, failing: AppRepository) -> None:
    App.objects.update(ended_at=timezone.now())
    assert not AppRepository.objects.failing().exists()


def test_open_circuit_and_pause_are_not_failures(world: World) -> None:
    _, watch = world.watch()
    world.settle()
    Repository.objects.update(circuit_open_until=from_now(600))
    assert failure(world.sync(watch)) == NOTHING
    App.objects.update(paused=True)
    assert failure(world.sync(watch)) == NOTHING


def test_root_cause_of_a_cooldown_or_a_down_endpoint(world: World) -> None:
    _, watch = world.watch({f"{number:02}.txt": b"x" for number in range(12)})
    world.answer(lambda note: Answer(429, headers={"Retry-After": "600"}))
    assert failure(world.sync(watch))[1:3] == ("http_4xx", 429)
    world.answer(lambda note: Answer(502))
    assert failure(world.sync(watch))[1:3] == ("http_5xx", 502)
    assert "endpoint is down" in watch.last_error
    world.answer(lambda note: Answer(410))
    assert failure(world.sync(watch))[1:3] == ("http_4xx", 410)


# --- The answer ----------------------------------------------------------------------------------------------------------


def test_stored_response_is_bounded_and_holds_no_key(world: World) -> None:
    _, watch = world.watch()
    world.answer(lambda note: Answer(401, {"expected": KEY, "nul": "\0", "more": "x" * 2000}))
    watch = world.sync(watch)
    assert (watch.root_cause, watch.last_status_code, len(watch.last_response)) == ("refused", 401, 500)
    assert "expected" in watch.last_response
    assert KEY not in watch.last_response


def test_git_failure_clears_the_app_response(world: World, failing: AppRepository) -> None:
    AppRepository.objects.filter(pk=failing.pk).update(github_url=f"{world.git.server.url}/acme/gone")
    assert failure(world.sync(failing))[1:4] == ("git_not_found", None, "")


# --- The cause -----------------------------------------------------------------------------------------------------------


def broken(*_: object) -> None:
    raise ZeroDivisionError


def test_internal_error_is_docoras_own_root_cause(world: World, monkeypatch) -> None:
    _, watch = world.watch()
    monkeypatch.setattr("deliveries_app.planning.planner.fill", broken)
    assert world.sync(watch).root_cause == RootCause.INTERNAL


def test_invalid_rules_have_their_own_root_cause(world: World) -> None:
    _, watch = world.watch({".docoraignore": b"\n".join(b"%d" % number for number in range(20_000))})
    assert world.sync(watch).root_cause == RootCause.RULES


@pytest.mark.parametrize(
    ("cause", "status", "root"),
    [
        ("dns", None, RootCause.DNS),
        ("tls", None, RootCause.TLS),
        ("timeout", None, RootCause.TIMEOUT),
        ("connect", None, RootCause.CONNECTION),
        ("network", None, RootCause.CONNECTION),
        ("refused_address", None, RootCause.ADDRESS),
        ("transform", None, RootCause.RULES),
        ("http", 401, RootCause.REFUSED),
        ("http", 403, RootCause.REFUSED),
        ("http", 404, RootCause.CLIENT_ERROR),
        ("http", 499, RootCause.CLIENT_ERROR),
        ("http", 500, RootCause.SERVER_ERROR),
        ("http", 599, RootCause.SERVER_ERROR),
        ("http", 302, RootCause.UNEXPECTED),
        ("http", 999, RootCause.UNEXPECTED),
    ],
)
def test_each_way_to_fail_has_one_root_cause(cause: str, status: int | None, root: RootCause) -> None:
    assert root_causes.of_delivery(cause, status) == root


@pytest.mark.parametrize("cause", list(GitCause))
def test_every_git_failure_has_a_git_root_cause(cause: GitCause) -> None:
    assert root_causes.of_git(cause).label.startswith("Git: ")
