"""Checks for differences, and failed attempts."""

from collections.abc import Sequence
from datetime import datetime

from deliveries_app.models import AppRepository, DeliveryAttempt, DriftCheck, DriftFile, DriftKind, DriftState
from deliveries_app.models.deliveries import ATTEMPTS_PER_PATH, path_digest

CHECKED_EVERY = 4  # watches
DIFFERENT_EVERY = 40
DIFFERENCES = 300


def make(watches: Sequence[AppRepository], now: datetime) -> None:
    """Add a check of every fourth watch, some with differences, and as many attempts of one path as are kept."""
    checks = DriftCheck.objects.bulk_create(
        DriftCheck(
            watch=watch,
            requested_by="anna",
            state=DriftState.EQUAL if number % DIFFERENT_EVERY else DriftState.DIFFERS,
            compared=400,
            missing=0 if number % DIFFERENT_EVERY else DIFFERENCES,
            listed=0 if number % DIFFERENT_EVERY else DIFFERENCES,
            created_at=now,
            started_at=now,
            ended_at=now,
        )
        for number, watch in enumerate(watches[::CHECKED_EVERY])
    )
    DriftFile.objects.bulk_create(
        DriftFile(check_of=check, path=f"docs/{number:04}.md", kind=DriftKind.MISSING, sha="a" * 64, sequence=1)
        for check in checks
        for number in range(check.listed)
    )
    DeliveryAttempt.objects.bulk_create(
        DeliveryAttempt(
            app_id=watch.app_id,
            watch=watch,
            path_digest=path_digest(b"docs/0001.md"),
            at=now,
            event="create",
            cause="http",
            status_code=500,
            message="The app returned HTTP 500.",
            milliseconds=20,
            headers={},
            request_body="{}",
            response_body="oops",
        )
        for watch in watches[::CHECKED_EVERY]
        for _ in range(ATTEMPTS_PER_PATH)
    )
