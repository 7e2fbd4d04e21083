"""Create any number of rows of every model without a sync. Most of them refer to the oldest row of each model."""

from datetime import timedelta

from django.contrib.auth.models import Group, User
from django.utils import timezone

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AppToken,
    AuditAction,
    BulkOperation,
    Canary,
    CanaryState,
    Delivery,
    DeliveryAttempt,
    DeliveryFailure,
    DriftCheck,
    DriftFile,
    DriftKind,
    DriftState,
    FailureKind,
    HourlyTraffic,
    Notice,
    NoticeKind,
    OperationKind,
    Outcome,
    PendingRelease,
    Reason,
    RootCause,
    Status,
    SyncRun,
)
from deliveries_app.models.deliveries import path_digest
from repositories_app.models import GitHubApp, Repository, Snapshot
from tests.support.staff import make_app, make_watch

_STATUSES = (Status.FAILED, Status.SCANNING, Status.PENDING, Status.SYNCED)


def add_rows(first: int, last: int) -> None:
    """Add rows number `first` to `last` (exclusive) to every table. Row 0 is the one that the others belong to.

    The result: an app with many watches, a repository with many watches, a failing watch with many deliveries,
    failures, runs and notices, and open, ended and cancelled operations, the first of them with many runs.
    """
    for number in range(first, last):
        _add(number)


def _add(number: int) -> None:
    now = timezone.now()
    app = make_app(f"Portal {number:02}")
    portal = App.objects.order_by("pk")[0]
    token = f"{number:04}"
    AppToken.objects.create(app=portal, digest=f"{number:064}", ending=token, expires_at=now + timedelta(hours=1))
    fields = _failing(number) if number % 4 < 3 else {"status": Status.SYNCED}
    one = make_watch(portal, f"repository-{number:05}", **fields)
    watch = AppRepository.objects.order_by("pk")[0]
    if number:
        make_watch(app, "repository-00000", **fields)
    Repository.objects.filter(pk=one.repository_id).update(circuit_open_until=now + timedelta(hours=1))
    Snapshot.objects.create(
        repository=watch.repository, commit_sha=f"{number:040}", branch="main", file_count=1, total_bytes=1
    )
    _add_deliveries(number, watch)
    operation = BulkOperation.objects.create(
        kind=OperationKind.values[number % 3], title=f"Operation {number}", app=portal, requested_by="anna", total=1,
        ended_at=now if number % 3 else None, cancelled_at=now if number % 3 == 1 else None,
    )  # fmt: skip
    first = BulkOperation.objects.order_by("pk")[0]
    _add_run(number, one, first)
    _add_unreleased(number, first, one, app)
    _add_run(number, watch, operation)
    _add_run(number, watch, None)
    HourlyTraffic.objects.create(app=portal, hour=now - timedelta(hours=number), files=1, requests=1)
    HourlyTraffic.objects.get_or_create(app=app, hour=now, defaults={"files": 1, "requests": 1})
    _add_check(number, watch)
    _add_check(number, one)
    Notice.objects.create(watch=watch, kind=NoticeKind.SYNC_FAILED, fields="{}", generation=1)
    user = User.objects.create(username=f"user-{number:02}", is_staff=True)
    Group.objects.create(name=f"Group {number}")
    github_app = GitHubApp.objects.create(name=f"GitHub App {number:02}", app_id=f"{number}", private_key="k")
    App.objects.filter(pk=app.pk).update(github_app=github_app)
    changes = audit.Changes({"name": "a"}, {"name": f"{number}"})
    for row in (portal, watch, watch.repository, first, user):
        audit.record(Actor(user.username, user=user), list(AuditAction)[number % 5], [row], "Changed", changes)


def _add_check(number: int, watch: AppRepository) -> None:
    """Add a check for differences, an open one only for a watch without checks. The oldest one has files of every kind."""
    is_open = number % 4 == 1 and not watch.drift_checks.exists()
    check = DriftCheck.objects.create(
        watch=watch, requested_by="anna", state=DriftState.QUEUED if is_open else DriftState.DIFFERS, compared=402,
        ended_at=None if is_open else timezone.now(), missing=1, different=1, extra=1, listed=3,
    )  # fmt: skip
    oldest = DriftCheck.objects.order_by("pk")[0]
    kind = DriftKind.values[number % 3]
    DriftFile.objects.create(check_of=oldest, path=f"file-{check.pk}", kind=kind, sha="a" * 64, sequence=1)


def _add_unreleased(number: int, operation: BulkOperation, watch: AppRepository, app: App) -> None:
    """Let the first operation be gradual, with a canary for each app, and with watches that are not released."""
    if not number:
        BulkOperation.objects.filter(pk=operation.pk).update(
            canary=True, held_at=timezone.now(), held_reason="It failed."
        )
    PendingRelease.objects.create(operation=operation, watch=watch, position=number)
    Canary.objects.create(operation=operation, app=app, state=CanaryState.HELD)


def _failing(number: int) -> dict[str, object]:
    return {
        "status": _STATUSES[number % 4],
        "failing_since": timezone.now(),
        "root_cause": RootCause.values[number % len(RootCause)],
        "last_error": "The app returned HTTP 500.",
        "left_out": {"symlink": 1},
        "files_failing": 1,
    }


def _add_deliveries(number: int, watch: AppRepository) -> None:
    now = timezone.now()
    Delivery.objects.create(
        watch=watch, path=f"src/{number:03}", mode="100644", kind="create", source_key="x", sha="0" * 64, size=3,
        sequence=number, generation=1, acknowledged=number % 2 == 0, updated_at=now,
    )  # fmt: skip
    DeliveryAttempt.objects.create(
        app=watch.app, watch=watch, path_digest=path_digest(f"src/{number:03}".encode()), at=now, event="create",
        cause="http", status_code=500, message="The app returned HTTP 500.", milliseconds=3,
        headers={"X-Docora-Run-Id": f"run_{number}"}, request_body="{}", response_body="{}",
    )  # fmt: skip
    for kind in FailureKind:
        DeliveryFailure.objects.create(
            watch=watch, path_digest=f"{kind}{number:050}", path=f"src/{number:03}", kind=kind, cause="http", status_code=500,
            message="The app returned HTTP 500.", first_at=now, last_at=now,
        )  # fmt: skip


def _add_run(number: int, watch: AppRepository, operation: BulkOperation | None) -> None:
    """Add a run. Runs of an ended operation are never open."""
    now = timezone.now()
    is_open = number % 3 == 0 and (operation is None or operation.ended_at is None)
    SyncRun.objects.create(
        watch=watch, app_name=watch.app.name, repository_name=str(watch.repository), operation=operation,
        reason=Reason.values[number % len(Reason)], requested_by="anna", generation=1, started_at=now,
        ended_at=None if is_open else now, outcome="" if is_open else Outcome.values[number % len(Outcome)],
        files_total=2, files_done=1,
    )  # fmt: skip
