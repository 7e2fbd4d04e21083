"""The state of the endpoints that a bulk action sends to, for its confirmation page, worst first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.utils import timezone

from deliveries_app.models import App, AppRepositoryQuerySet
from deliveries_app.reports.app_detail import describe_stats
from deliveries_app.reports.app_health import condition
from deliveries_app.webhooks import endpoint_stats
from deliveries_app.webhooks.endpoint_stats import EndpointStats

SHOWN = 5
_FIELDS = (
    "app_id", "name", "base_url", "paused", "paused_reason", "cooldown_until", "down_count", "max_in_flight", "pace_slots",
    "pace_gap", "ping_failed_at",
)  # fmt: skip


@dataclass(frozen=True)
class Endpoint:
    """An app, its badge, a summary of its latest requests, and warnings that say why a sync will fail or wait."""

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


def of_watches(watches: AppRepositoryQuerySet) -> Preflight:
    """Return the endpoints of these watches' apps, with one query and one round trip to Redis."""
    apps = list(App.objects.filter(pk__in=watches.order_by().values("app")).only(*_FIELDS))
    stats = endpoint_stats.of_apps(apps)
    endpoints = sorted((_endpoint(app, stats) for app in apps), key=lambda endpoint: endpoint.rank)
    shown = endpoints[:SHOWN]
    return Preflight(shown, len(endpoints) - len(shown), sum(1 for endpoint in endpoints if endpoint.warnings))


def after_ping(app: App) -> Endpoint:
    """Return the app's endpoint as shown beside a ping's result: without a warning about a failed ping."""
    return _endpoint(app, endpoint_stats.of_apps([app]), ping_is_shown=True)


def _endpoint(app: App, found: Mapping[int, EndpointStats] | None, *, ping_is_shown: bool = False) -> Endpoint:
    stats = found.get(app.pk) if found else None
    warnings, severity = [], 0
    if stats and stats.is_unhealthy:
        share = f"only {100 * stats.accepted:.0f}%" if stats.accepted else "none"
        warnings.append(f"It accepted {share} of the last {stats.requests} notifications.")
        severity = 2
    if app.ping_failed_at and not ping_is_shown:
        warnings.append("The last test ping failed.")
        severity = 3
    if app.down_count:
        warnings.append("The endpoint doesn't respond. Docora tries one repository now; the rest wait for the result.")
        severity = 5
    elif app.is_on_hold and app.cooldown_until:
        until = timezone.localtime(app.cooldown_until)
        warnings.append(f"The endpoint is too busy (HTTP 429 or 503). Nothing is sent before {until:%H:%M}.")
        severity = 4
    if app.paused:
        warnings.append(app.paused_reason or "Nothing is sent until the app is resumed.")
        severity = 6
    rank = -severity, stats.accepted if stats else 1.0, app.name
    return Endpoint(app, *condition(app), describe_stats(found, app), warnings, rank)
