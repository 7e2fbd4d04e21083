"""Gradual operations: a canary for each app, and a pace (`engine.md` §14)."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from deliveries_app.actors import Actor
from deliveries_app.admin.operations import rows_of
from deliveries_app.models import (
    App,
    AppRepository,
    BulkOperation,
    Canary,
    CanaryState,
    Outcome,
    PendingRelease,
    Result,
    RootCause,
    Status,
    SyncPause,
    SyncRun,
)
from deliveries_app.progress import activity, context, live, runs
from deliveries_app.reports import history
from deliveries_app.services import (
    Rollout,
    cancel_operation,
    continue_operation,
    delete_app,
    pause_watches,
    requests,
    resume_watches,
    resync_by_app,
    resync_many,
    resync_single,
    retry_single,
    unwatch_repository,
)
from deliveries_app.services.rollout import CANARY_SECONDS, release_due
from docora.db.clock import from_now
from repositories_app.models import Repository
from tests.support.audit import by_users
from tests.support.processes import in_threads
from tests.support.staff import fail, make_app, make_watch

COMMAND = Actor.command()
CANARY = Rollout(canary=True)


@pytest.fixture
def portal(db) -> App:
    return make_app("Portal")


@pytest.fixture
def search(db) -> App:
    return make_app("Search")


@pytest.fixture(autouse=True)
def run_callbacks(django_capture_on_commit_callbacks):
    """Run the callbacks of commits, although the test's transaction is rolled back."""
    with django_capture_on_commit_callbacks(execute=True):
        yield


def fill(app: App, number: int, **fields: object) -> list[AppRepository]:
    """Let the app watch this many repositories, the first with the fewest files."""
    return [make_watch(app, f"{app.name}-{index}", tree_files=10 * (index + 1), **fields) for index in range(number)]


def start(rollout: Rollout = CANARY) -> BulkOperation:
    operation = resync_many(COMMAND, AppRepository.objects.all(), rollout=rollout)
    release_due()
    return operation


def released() -> set[str]:
    """Return the names of the repositories that were released: with a new generation, a new floor and a run."""
    watches = AppRepository.objects.filter(generation=2, resend_floor=2, status=Status.PENDING)
    names = {str(watch.repository).partition("/")[2] for watch in watches.select_related("repository")}
    untouched = AppRepository.objects.filter(generation=1, resend_floor=1, status=Status.SYNCED, next_sync_at=None)
    assert len(names) + untouched.count() == AppRepository.objects.count()
    assert not SyncRun.objects.filter(watch__in=untouched).exists()
    return names


def end(name: str, outcome: Outcome, error: str = "") -> None:
    """End the newest run of a repository, as its worker would."""
    watch = AppRepository.objects.get(repository__name=name)
    runs.end_runs(watch.pk, watch.generation, outcome, error)


def state(operation: BulkOperation) -> Result:
    operation.refresh_from_db()
    return context.of_operation(operation)["result"]


def pass_time(seconds: float) -> None:
    """Let this many seconds pass for the operations, canaries and runs."""
    shift = timedelta(seconds=seconds)
    BulkOperation.objects.update(next_release_at=F("next_release_at") - shift)
    Canary.objects.update(since=F("since") - shift)
    SyncRun.objects.update(created_at=F("created_at") - shift)


def test_canary_releases_the_rest_of_its_app(portal: App, search: App) -> None:
    fill(portal, 3)
    fill(search, 2)
    operation = start()
    assert released() == {"Portal-0", "Search-0"}
    end("Portal-0", Outcome.SUCCEEDED)
    assert release_due() == 2
    assert released() == {"Portal-0", "Portal-1", "Portal-2", "Search-0"}
    progress = live.of_operation(operation)
    assert (operation.total, progress.unreleased) == (5, 1)
    outcomes = history.outcomes([operation])[operation.pk]
    assert outcomes.files_total == progress.files_total == 80
    assert outcomes.bytes_total == progress.bytes_total == 20_000
    end("Search-0", Outcome.SUCCEEDED)
    release_due()
    for name in ("Portal-1", "Portal-2", "Search-1"):
        assert state(operation) == Result.RUNNING
        end(name, Outcome.SUCCEEDED)
    assert state(operation) == Result.SUCCEEDED
    assert not Canary.objects.exists()


@pytest.mark.parametrize("decision", ["continue", "cancel"])
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.PAUSED, Outcome.CANCELLED])
def test_failed_canary_holds_its_app_only(portal: App, search: App, outcome: Outcome, decision: str) -> None:
    fill(portal, 2)
    fill(search, 2)
    operation = start()
    end("Portal-0", outcome, "The app returned HTTP 500.")
    end("Search-0", Outcome.SUCCEEDED)
    release_due()
    assert state(operation) == Result.HELD
    problem = "was cancelled." if outcome == Outcome.CANCELLED else "failed: The app returned HTTP 500."
    assert operation.held_reason == f"Portal: acme/Portal-0 {problem}"
    assert released() == {"Portal-0", "Search-0", "Search-1"}
    end("Search-1", Outcome.SUCCEEDED)
    assert (state(operation), release_due()) == (Result.HELD, 0)
    if decision == "continue":
        assert continue_operation(COMMAND, operation) == 1
        assert (continue_operation(COMMAND, operation), release_due()) == (0, 1)
        assert state(operation) == Result.RUNNING
        end("Portal-1", Outcome.SUCCEEDED)
        final = Result.SUCCEEDED if outcome == Outcome.CANCELLED else Result.PARTLY_FAILED
    else:
        assert cancel_operation(COMMAND, operation) == 1
        final = Result.CANCELLED
        assert live.of_operation(operation).unreleased == 1
        assert "1 had not been released and stayed as it was" in context.summary(
            operation, live.of_operation(operation)
        )
    assert (state(operation), release_due()) == (final, 0)
    assert released() == {"Portal-0", "Search-0", "Search-1"} | ({"Portal-1"} if decision == "continue" else set())


def test_canary_is_held_after_thirty_minutes(portal: App) -> None:
    fill(portal, 2)
    operation = start()
    pass_time(CANARY_SECONDS - 5)
    release_due()
    assert state(operation) == Result.RUNNING
    pass_time(5)
    release_due()
    assert state(operation) == Result.HELD
    assert operation.held_reason == "Portal: acme/Portal-0 has not finished within 30 minutes."
    end("Portal-0", Outcome.SUCCEEDED)  # a person has been asked, so a person decides
    assert (release_due(), state(operation)) == (0, Result.HELD)


@pytest.mark.parametrize("pause", ["app", "everything"])
def test_pause_stops_releases_and_the_time_of_a_canary(portal: App, search: App, pause: str) -> None:
    fill(portal, 2)
    if pause == "app":
        App.objects.update(paused=True)
    else:
        SyncPause.objects.create(paused_by="anna")
    operation = start()
    assert released() == set()
    doing = activity.of_operation(operation, live.of_operation(operation))
    assert doing is not None
    assert doing.label == "Paused"
    resume = lambda: (App.objects.update(paused=False), SyncPause.objects.all().delete())  # noqa: E731
    resume()
    assert (release_due(), released()) == (1, {"Portal-0"})
    App.objects.update(paused=True)
    for _ in range(3):
        pass_time(CANARY_SECONDS - 1)
        release_due()
    resume()
    canary = AppRepository.objects.filter(repository__name="Portal-0")
    pause_watches(Actor.command(), canary)
    for _ in range(3):
        pass_time(CANARY_SECONDS - 1)
        release_due()
    resume_watches(Actor.command(), canary)
    release_due()
    assert state(operation) == Result.RUNNING
    end("Portal-0", Outcome.SUCCEEDED)
    assert release_due() == 1


def test_paused_repository_is_released_when_it_is_resumed(portal: App) -> None:
    fill(portal, 2)
    watch = AppRepository.objects.filter(repository__name="Portal-0")
    pause_watches(Actor.command(), watch)
    operation = start()
    assert released() == {"Portal-1"}
    end("Portal-1", Outcome.SUCCEEDED)
    assert release_due() == 0
    doing = activity.of_operation(operation, live.of_operation(operation))
    [row] = rows_of(operation, [], list(operation.pending.all()))
    assert doing == activity.Activity("paused", "Paused", row.waits_for)
    assert (row.state, row.waits_for) == ("paused", "the repository is paused")
    resume_watches(Actor.command(), watch)
    assert (release_due(), released()) == (1, {"Portal-0", "Portal-1"})


def test_canary_is_a_healthy_repository_with_few_files(portal: App) -> None:
    make_watch(portal, "empty", tree_files=0)
    fail(make_watch(portal, "failing", tree_files=1), RootCause.SERVER_ERROR)
    make_watch(portal, "importing", tree_files=1, arriving=True)
    unreadable = make_watch(portal, "unreadable", tree_files=1).repository
    Repository.objects.filter(pk=unreadable.pk).update(circuit_open_until=from_now(600))
    make_watch(portal, "large", tree_files=500)
    make_watch(portal, "small", tree_files=2)
    operation = start()
    assert [run.repository_name for run in operation.runs.all()] == ["acme/small"]
    others = operation.pending.order_by("position").values_list("watch__repository__name", flat=True)
    assert list(others) == ["large", "empty", "unreadable", "importing", "failing"]


@pytest.mark.parametrize("end_of_canary", ["unwatched", "retried"])
def test_next_repository_takes_the_place_of_a_canary_without_a_result(portal: App, end_of_canary: str) -> None:
    first, *_ = fill(portal, 3)
    operation = start()
    if end_of_canary == "unwatched":
        unwatch_repository(COMMAND, first)
    else:
        fail(first, RootCause.SERVER_ERROR)
        retry_single(COMMAND, first)
    assert release_due() == 1
    assert set(operation.runs.values_list("repository_name", flat=True)) == {"acme/Portal-0", "acme/Portal-1"}
    assert state(operation) == Result.RUNNING


def test_app_with_one_repository_holds_nothing(portal: App, search: App) -> None:
    fill(portal, 1)
    fill(search, 2)
    operation = start()
    end("Portal-0", Outcome.FAILED)
    release_due()
    assert state(operation) == Result.RUNNING
    end("Search-0", Outcome.SUCCEEDED)
    release_due()
    end("Search-1", Outcome.SUCCEEDED)
    assert state(operation) == Result.PARTLY_FAILED


def test_pace_spreads_releases_evenly(portal: App) -> None:
    fill(portal, 20)
    operation = start(Rollout(pace=6))
    counts = [len(released())]
    for _ in range(6):
        pass_time(5)
        release_due()
        counts.append(len(released()))
    assert counts == [1, 1, 2, 2, 3, 3, 4]
    pass_time(600)
    assert [release_due(), release_due()] == [1, 0]  # a sweep that was away does not make up for it
    assert live.of_operation(operation).unreleased == 15


@pytest.mark.parametrize("step", [0.7, 1.0, 7.0, 61.0])
def test_pace_is_never_exceeded_in_any_minute(portal: App, step: float) -> None:
    fill(portal, 100)
    operation = start(Rollout(pace=30))
    for _ in range(int(70 / step) + 2):
        pass_time(step)
        release_due()
    times = [created.timestamp() for created in operation.runs.values_list("created_at", flat=True)]
    assert len(times) > (30 if step < 5 else 2)
    assert all(sum(0 <= other - moment < 60 for other in times) <= 30 for moment in times)


def test_clock_that_is_set_back_stops_no_releases(portal: App) -> None:
    fill(portal, 5)
    start(Rollout(canary=True, pace=1))
    pass_time(-7200)
    release_due()
    assert released() == {"Portal-0"}
    pass_time(CANARY_SECONDS + 1)
    release_due()
    assert Canary.objects.get().state == CanaryState.HELD
    end("Portal-0", Outcome.SUCCEEDED)
    Canary.objects.update(state=CanaryState.PASSED)
    pass_time(-7200)
    assert [release_due(), release_due()] == [1, 0]
    pass_time(60)
    assert release_due() == 1


def test_canaries_count_for_the_pace_and_come_first(portal: App, search: App) -> None:
    fill(portal, 3)
    fill(search, 3)
    start(Rollout(canary=True, pace=1))
    for step in ({"Portal-0"}, {"Portal-0", "Search-0"}, {"Portal-0", "Search-0", "Portal-1"}):
        assert released() == step
        end("Portal-0", Outcome.SUCCEEDED)
        pass_time(60)
        release_due()


def test_single_repository_is_released_at_once(portal: App) -> None:
    fill(portal, 1)
    operation = start(Rollout(canary=True, pace=1))
    assert (operation.is_gradual, released()) == (False, {"Portal-0"})
    assert "unreleased" not in live.of_operation(operation).as_dict()


@pytest.mark.parametrize("rollout", [Rollout(), CANARY, Rollout(pace=1), Rollout(canary=True, pace=1)])
@pytest.mark.parametrize("moment", ["at once", "after the canary", "held"])
def test_cancel_leaves_unreleased_repositories_untouched(portal: App, rollout: Rollout, moment: str) -> None:
    fill(portal, 3)
    operation = start(rollout)
    if moment != "at once":
        end("Portal-0", Outcome.FAILED if moment == "held" else Outcome.SUCCEEDED)
        release_due()
    touched = released() if rollout.is_gradual else set()
    open_now = operation.runs.filter(outcome="").count()
    unreleased = operation.pending.count()
    assert cancel_operation(COMMAND, operation) == open_now + unreleased
    assert (release_due(), cancel_operation(COMMAND, operation)) == (0, 0)
    assert state(operation) == Result.CANCELLED
    assert not PendingRelease.objects.exists()
    untouched = AppRepository.objects.filter(generation=1, resend_floor=1, status=Status.SYNCED, next_sync_at=None)
    assert untouched.count() == unreleased
    assert not rollout.is_gradual or len(touched) == 3 - unreleased


def test_unwatched_repositories_are_not_released(portal: App, search: App) -> None:
    _, second, _ = fill(portal, 3)
    fill(search, 2)
    operation = start()
    unwatch_repository(COMMAND, second)
    assert live.of_operation(operation).unreleased == 2
    delete_app(COMMAND, search)
    end("Portal-0", Outcome.SUCCEEDED)
    release_due()
    end("Portal-2", Outcome.SUCCEEDED)
    assert state(operation) == Result.SUCCEEDED
    assert (operation.total, live.of_operation(operation).unreleased) == (5, 2)


def test_operation_ends_when_the_last_unreleased_repository_is_unwatched(portal: App) -> None:
    watches = fill(portal, 2)
    operation = start()
    end("Portal-0", Outcome.FAILED)
    release_due()
    assert state(operation) == Result.HELD
    unwatch_repository(COMMAND, watches[1])
    assert state(operation) == Result.FAILED


def test_operation_is_not_held_for_repositories_that_are_no_longer_watched(portal: App, search: App) -> None:
    """Search still runs, so the operation stays open. Nothing is left that a person could release."""
    fill(portal, 2)
    fill(search, 1)
    operation = start()
    end("Portal-0", Outcome.FAILED, "HTTP 500.")
    release_due()
    assert state(operation) == Result.HELD
    delete_app(COMMAND, portal)
    assert state(operation) == Result.RUNNING
    end("Search-0", Outcome.SUCCEEDED)
    assert state(operation) == Result.PARTLY_FAILED


def test_reason_of_a_held_operation_is_short(db) -> None:
    names = [f"App{number}" for number in range(5)]
    for name in names:
        fill(make_app(name), 2)
    operation = start()
    for name in names:
        end(f"{name}-0", Outcome.FAILED, "HTTP 500.")
    release_due()
    assert state(operation) == Result.HELD
    assert operation.held_reason.count("failed: HTTP 500.") == 3
    assert operation.held_reason.endswith(" And 2 more apps.")


def test_title_fits_into_its_column(portal: App) -> None:
    make_watch(portal, "n" * 200)
    assert len(start(Rollout()).title) == 200


def test_operation_is_not_held_for_what_another_one_releases(portal: App, search: App) -> None:
    fill(portal, 2)
    fill(search, 1)
    operation = start()
    resync_many(COMMAND, AppRepository.objects.all(), rollout=Rollout(pace=1))
    end("Search-0", Outcome.FAILED, "HTTP 500.")
    release_due()
    assert state(operation) == Result.RUNNING


def test_operations_with_the_same_repositories_are_independent(portal: App) -> None:
    fill(portal, 5)
    first, second = (resync_by_app(COMMAND, portal, rollout=Rollout(pace=60)) for _ in range(2))
    assert release_due() == 2
    pass_time(3)
    assert release_due() == 6
    assert [operation.pending.count() for operation in (first, second)] == [1, 1]
    assert cancel_operation(COMMAND, first) == 5
    assert state(first) == Result.CANCELLED
    assert second.pending.count() == 1


def test_app_shows_the_operations_of_its_repositories_only(portal: App, search: App) -> None:
    operations = []
    for app in (portal, search):
        fill(app, 2)
        operations.append(resync_many(COMMAND, AppRepository.objects.filter(app=app), rollout=CANARY))
    assert [list(context.involving(app)) for app in (portal, search)] == [[operation] for operation in operations]


def test_continuing_releases_the_held_apps_only(portal: App, search: App) -> None:
    fill(portal, 2)
    fill(search, 2)
    operation = start()
    end("Portal-0", Outcome.FAILED, "HTTP 500.")
    release_due()
    assert continue_operation(COMMAND, operation) == 1
    release_due()
    assert released() == {"Portal-0", "Portal-1", "Search-0"}
    assert Canary.objects.get(app=search).state == CanaryState.RUNNING


def test_continuing_counts_the_repositories_of_its_operation_only(portal: App) -> None:
    fill(portal, 2)
    operation = start()
    resync_by_app(COMMAND, portal, rollout=Rollout(pace=1))
    end("Portal-0", Outcome.FAILED, "HTTP 500.")
    release_due()
    assert continue_operation(COMMAND, operation) == 1


def test_release_that_waited_for_its_locks_decides_again(portal: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile, another process has held the operation, and a person has continued it."""
    fill(portal, 2)
    operation = start()
    end("Portal-0", Outcome.FAILED)
    lock_watches = requests.lock_watches

    def lock_late(*arguments: Any, **options: Any) -> list[int]:
        monkeypatch.setattr(requests, "lock_watches", lock_watches)
        release_due()
        assert continue_operation(COMMAND, operation) == 1
        return lock_watches(*arguments, **options)

    monkeypatch.setattr(requests, "lock_watches", lock_late)
    assert (release_due(), released()) == (0, {"Portal-0"}), "it holds no lock of the repository that is due now"
    assert Canary.objects.get().state == CanaryState.CONTINUED
    assert (release_due(), released()) == (1, {"Portal-0", "Portal-1"})


def test_only_a_person_ends_the_cooldown_of_an_endpoint_that_is_down(
    portal: App, django_capture_on_commit_callbacks: Callable[..., AbstractContextManager[object]]
) -> None:
    fill(portal, 2)
    on_hold = App.objects.filter(cooldown_until__isnull=False)
    App.objects.update(down_count=1, cooldown_until=from_now(600))
    with django_capture_on_commit_callbacks(execute=True):
        resync_many(COMMAND, AppRepository.objects.all(), rollout=CANARY)
    assert (released(), on_hold.exists()) == ({"Portal-0"}, False)
    App.objects.update(cooldown_until=from_now(600))
    end("Portal-0", Outcome.SUCCEEDED)
    assert (release_due(), on_hold.exists()) == (1, True)


def test_resync_by_hand_does_not_release(portal: App) -> None:
    _, second = fill(portal, 2)
    operation = start()
    resync_single(COMMAND, second)
    end("Portal-1", Outcome.SUCCEEDED)
    assert live.of_operation(operation).unreleased == 1
    end("Portal-0", Outcome.SUCCEEDED)
    assert release_due() == 1
    assert operation.runs.count() == 2


def test_bar_never_goes_back_when_repositories_are_released(portal: App) -> None:
    fill(portal, 4)
    operation = start(Rollout(pace=60))
    shown = [live.of_operation(operation).files_total]
    for _ in range(3):
        pass_time(1)
        release_due()
        shown.append(live.of_operation(operation).files_total)
    assert shown == [100, 100, 100, 100]


def test_log_names_canary_pace_and_continue(portal: App) -> None:
    fill(portal, 2)
    anna = Actor.of_user(User.objects.create_superuser("anna"))
    operation = resync_many(anna, AppRepository.objects.all(), reason="New disk", rollout=Rollout(canary=True, pace=90))
    release_due()
    end("Portal-0", Outcome.FAILED, "The app returned HTTP 500.")
    release_due()
    operation.refresh_from_db()
    continue_operation(anna, operation)
    messages = list(by_users().values_list("actor", "message", "reason"))
    held = "Portal: acme/Portal-0 failed: The app returned HTTP 500."
    assert messages == [
        (
            "anna",
            "Re-sync of 2 repositories, one repository per app first, at most 90 per minute",
            "New disk",
        ),
        ("anna", f"Re-sync, {operation.operation_id}", "New disk"),
        ("anna", f"Continued with 1 repository. It was held: {held}", ""),
    ]


def test_continue_needs_the_permission(portal: App) -> None:
    fill(portal, 2)
    operation = start()
    end("Portal-0", Outcome.FAILED)
    release_due()
    operation.refresh_from_db()
    with pytest.raises(PermissionDenied):
        continue_operation(Actor.of_user(User.objects.create_user("victor", is_staff=True)), operation)
    assert state(operation) == Result.HELD


def test_statements_are_independent_of_the_number_of_repositories(portal: App) -> None:
    """A sweep without gradual operations takes one statement. With something to release, it takes the same number however
    many repositories there are, and so does a cancel."""
    with CaptureQueriesContext(connection) as idle:
        release_due()
    assert len(idle) == 1
    releases, cancels = [], []
    for number in (2, 40):
        app = make_app(f"App-{number}")
        fill(app, number)
        operation = resync_by_app(COMMAND, app, rollout=CANARY)
        release_due()
        for run in operation.runs.all():
            runs.end_runs(run.watch_id or 0, 9, Outcome.SUCCEEDED)
        with CaptureQueriesContext(connection) as asked:
            assert release_due() == number - 1
        releases.append(len(asked))
        with CaptureQueriesContext(connection) as cancelling:
            assert cancel_operation(COMMAND, operation) == number - 1
        cancels.append(len(cancelling))
    assert releases[0] == releases[1]
    assert cancels[0] == cancels[1]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_watch_that_ends_during_the_request_is_not_released() -> None:
    """A gradual request locks its watches, in the order in which everything else does."""
    app = make_app("Portal")
    watches = [make_watch(app, str(number)) for number in range(3)]
    has_ended = threading.Event()

    def unwatch() -> None:
        with transaction.atomic():
            unwatch_repository(COMMAND, watches[1])
            has_ended.set()
            time.sleep(0.5)

    def request() -> BulkOperation:
        assert has_ended.wait(10)
        return resync_by_app(COMMAND, app, rollout=CANARY)

    _, operation = in_threads(unwatch, request)
    assert isinstance(operation, BulkOperation)
    assert operation.total == 2
    assert not PendingRelease.objects.filter(watch=watches[1]).exists()
