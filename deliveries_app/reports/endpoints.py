"""The endpoints of apps: their condition, their latest requests, and the warnings before a bulk action."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from django.db.models import Exists, OuterRef, Q

from deliveries_app.models import App, AppRepositoryQuerySet, HourlyTraffic
from deliveries_app.models.apps import APP_SECRETS
from deliveries_app.reports.traffic import HOURS, last_hours
from deliveries_app.webhooks import endpoint_stats
from deliveries_app.webhooks.endpoint_stats import EndpointStats
from docora.templatetags.docora import milliseconds, time_of_day
from docora.text import format_share

_SHOWN = 5  # on a confirmation page


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


def health(app: App) -> str:
    """Return `99.2% accepted · median 38 ms · p95 210 ms (last 100)`, or a sentence if there are no recent requests."""
    return _describe(endpoint_stats.of_apps([app]), app)


def _describe(found: Mapping[int, EndpointStats] | None, app: App) -> str:
    if found is None:
        return "Recent notifications are unknown: Redis isn't responding"
    stats = found.get(app.pk)
    if stats is None:
        return "No recent notifications"
    times = f"median {milliseconds(stats.median)} · p95 {milliseconds(stats.p95)}"
    return f"{format_share(stats.accepted)} accepted · {times} (last {stats.requests})"


@dataclass(frozen=True)
class Endpoint:
    """An app, its badge, a summary of its latest requests, and warnings that say why a sync will fail or wait.

    `rank` sorts the worst endpoints first.
    """

    app: App
    style: str
    label: str
    health: str
    warnings: Sequence[str]
    rank: tuple[int, float, str]


@dataclass(frozen=True)
class Preflight:
    """The worst endpoints, the number of `more` endpoints, and how many of all endpoints have a warning."""

    shown: Sequence[Endpoint]
    more: int
    warned: int

    @property
    def more_warned(self) -> int:
        return self.warned - sum(1 for endpoint in self.shown if endpoint.warnings)


def preflight(watches: AppRepositoryQuerySet) -> Preflight:
    """Return the endpoints of these watches' apps, with one query and one round trip to Redis."""
    failed_at = OuterRef("ping_failed_at")
    traffic = HourlyTraffic.objects.filter(app=OuterRef("pk"), hour__gt=failed_at - timedelta(hours=1))
    ping_failed = Q(ping_failed_at__isnull=False) & ~Exists(traffic.filter(acknowledged_at__gt=failed_at))
    selected = App.objects.filter(pk__in=watches.order_by().values("app")).defer(*APP_SECRETS)
    apps = list(selected.annotate(ping_failed=ping_failed))
    stats = endpoint_stats.of_apps(apps)
    found = (_endpoint(app, stats, ping_failed=app.ping_failed) for app in apps)
    endpoints = sorted(found, key=lambda endpoint: endpoint.rank)
    shown = endpoints[:_SHOWN]
    return Preflight(shown, len(endpoints) - len(shown), sum(1 for endpoint in endpoints if endpoint.warnings))


def after_ping(app: App) -> Endpoint:
    """Return the app's endpoint as shown beside a ping's result: without a warning about a failed ping."""
    return _endpoint(app, endpoint_stats.of_apps([app]), ping_failed=False)


def _endpoint(app: App, found: Mapping[int, EndpointStats] | None, *, ping_failed: bool) -> Endpoint:
    """`ping_failed`: the last test ping failed, and the app has accepted no file since."""
    stats = found.get(app.pk) if found else None
    warnings: dict[int, str] = {}  # by severity
    if stats and stats.is_unhealthy:
        share = f"only {100 * stats.accepted:.0f}%" if stats.accepted else "none"
        warnings[1] = f"It accepted {share} of the last {stats.requests} notifications."
    if ping_failed:
        warnings[2] = "The last test ping failed."
    if app.paused:
        warnings[5] = app.paused_reason or "Nothing is sent until the app is resumed."
    elif app.down_count:
        warnings[4] = "The endpoint doesn't respond. Docora tries one repository now; the rest wait for the result."
    elif app.is_on_hold and app.cooldown_until:
        until = time_of_day(app.cooldown_until)
        warnings[3] = f"The endpoint is too busy (HTTP 429 or 503). Nothing is sent before {until}."
    rank = -max(warnings, default=0), stats.accepted if stats else 1.0, app.name
    return Endpoint(app, *condition(app), _describe(found, app), list(warnings.values()), rank)
