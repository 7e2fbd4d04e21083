"""Summaries of checks for differences, for pages and commands."""

from collections.abc import Iterable

from deliveries_app.models import AppRepository, DriftCheck, DriftState
from deliveries_app.services.drift import waits_for
from docora.text import counted

STYLES: dict[str, str] = {
    DriftState.QUEUED: "queued",
    DriftState.CHECKING: "running",
    DriftState.EQUAL: "succeeded",
    DriftState.DIFFERS: "partly_failed",
    DriftState.UNSUPPORTED: "cancelled",
    DriftState.NOT_CHECKED: "failed",
    DriftState.CANCELLED: "cancelled",
}
"""State → the badge's style."""


def summary(check: DriftCheck) -> str:
    """Summarize the result, or what a queued check is waiting for. The watch of a queued check must be read `with_state`."""
    if check.state == DriftState.DIFFERS:
        return f"{check.differences:,} of {counted(check.compared, 'file')} {'differs' if check.differences == 1 else 'differ'}"
    if check.state == DriftState.EQUAL:
        return f"{counted(check.compared, 'file')} compared"
    if check.state == DriftState.CHECKING:
        return "Comparing the app's files…"
    if check.state == DriftState.QUEUED:
        return waits_for(check.watch)
    return check.message


def with_watches(checks: Iterable[DriftCheck]) -> list[DriftCheck]:
    """Return the checks. The watches of open checks are read `with_state`."""
    found = list(checks)
    read = AppRepository.objects.with_state().for_list().in_bulk([check.watch_id for check in found if check.is_open])
    for check in found:
        check.watch = read.get(check.watch_id, check.watch)
    return found


def newest(watch: AppRepository) -> DriftCheck | None:
    """Return the newest check of a watch that was read `with_state`."""
    check = watch.drift_checks.first()
    if check is not None:
        check.watch = watch
    return check
