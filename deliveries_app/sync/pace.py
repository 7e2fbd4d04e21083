"""The pace at which notifications are sent to an app (`engine.md` §7).

It is reduced if the app answers 429 or 503, and raised again while the app accepts. All watches of the app and all workers
share it. It is the number of notifications in flight and, if that is one, the gap between the starts of two.
"""

from collections.abc import Callable

from django.db import transaction
from django.db.models.functions import Now

from deliveries_app.models import App
from docora.db.clock import from_now

SUCCESSES_TO_SPEED_UP = 50
_SHORTEST_GAP, _LONGEST_GAP = 0.02, 10.0  # seconds
_SLOWER_AFTER = 1.0  # seconds; refusals within a moment have the same reason
FASTER_AFTER = 10.0  # seconds; sending too fast costs a pause of a second or more
RECOVERS_AFTER = 30.0
"""Seconds without a change of the pace after which fewer successes are enough: a run may have only a few files."""


def slow_down(app: App) -> App:
    """Halve the notifications in flight, or double the gap, at most once a second across all runs. Return the app's row."""
    return _change(app, _slower, _SLOWER_AFTER)


def speed_up(app: App, after: float = FASTER_AFTER) -> App:
    """Shorten the gap, or allow one more in flight, at most once in `after` seconds across all runs. Return the app's row."""
    return _change(app, _faster, after)


def _change(app: App, change: Callable[[App], tuple[int | None, float]], after: float) -> App:
    """Change the pace unless it has changed within the last `after` seconds, or the app has another endpoint now."""
    with transaction.atomic():
        rows = App.objects.filter(pk=app.pk)
        row = rows.select_for_update(no_key=True).get()
        if row.base_url == app.base_url and not rows.filter(paced_at__gt=from_now(-after)).exists():
            row.pace_slots, row.pace_gap = change(row)
            rows.update(pace_slots=row.pace_slots, pace_gap=row.pace_gap, paced_at=Now())
    return row


def _slower(app: App) -> tuple[int | None, float]:
    if app.slots_allowed > 1:
        return app.slots_allowed // 2, 0.0
    return 1, min(max(2 * app.pace_gap, _SHORTEST_GAP), _LONGEST_GAP)


def _faster(app: App) -> tuple[int | None, float]:
    if app.pace_gap > _SHORTEST_GAP:
        return 1, app.pace_gap * 0.75
    slots = app.slots_allowed if app.pace_gap else app.slots_allowed + 1
    return (slots, 0.0) if slots < app.max_in_flight else (None, 0.0)
