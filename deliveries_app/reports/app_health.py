"""The health of several apps, for the list of apps: their latest requests, and their traffic of the last day."""

from collections.abc import Sequence
from typing import NamedTuple

from deliveries_app.models import App, HourlyTraffic
from deliveries_app.reports.traffic import HOURS, last_hours
from deliveries_app.webhooks import endpoint_stats
from deliveries_app.webhooks.endpoint_stats import EndpointStats


class AppHealth(NamedTuple):
    """`stats` is None without recent requests. `is_known` is False if Redis, which counts them, cannot be reached.

    `hours` has (delivered files, failed attempts) for each hour, oldest first.
    """

    stats: EndpointStats | None
    is_known: bool
    hours: tuple[tuple[int, int], ...]


def condition(app: App) -> tuple[str, str]:
    """Return the style and the label of the badge for the app and its endpoint."""
    if app.paused:
        return "paused", "Paused"
    if app.down_count:
        return "failed", "Endpoint down"
    if app.is_on_hold:
        return "on_hold", "On hold"
    return ("on_hold", "Slowed down") if app.is_slowed_down else ("succeeded", "Active")


def of_apps(apps: Sequence[App]) -> dict[int, AppHealth]:
    """Return the health of these apps, by primary key: one query, and one round trip to Redis."""
    begins = last_hours(HOURS)
    rows = HourlyTraffic.objects.filter(app__in=[app.pk for app in apps], hour__gte=begins[0]).order_by()
    sent = {(row.app_id, row.hour): (row.files, row.failed) for row in rows.only("app_id", "hour", "files", "failed")}
    stats = endpoint_stats.of_apps(apps)
    return {
        app.pk: AppHealth(
            (stats or {}).get(app.pk), stats is not None, tuple(sent.get((app.pk, begin), (0, 0)) for begin in begins)
        )
        for app in apps
    }
