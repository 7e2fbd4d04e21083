"""The list of apps: the health of each endpoint, the failing repositories, and a button to re-sync."""

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.admin import widgets
from deliveries_app.admin.actions import BulkAdmin
from deliveries_app.admin.base import column
from deliveries_app.models import App
from deliveries_app.models.apps import APP_SECRETS
from deliveries_app.permissions import Permission
from deliveries_app.reports import chart, endpoints
from deliveries_app.reports.chart import SPARK_HEIGHT, SPARK_WIDTH
from deliveries_app.reports.traffic import HOURS
from docora.templatetags.docora import ago, badge, icon, milliseconds, number
from docora.text import counted, format_share


class HealthChangeList(ChangeList):
    """Read the health of all apps on the page at once."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> QuerySet[Any]:
        """Read no secrets, as in `AppRepositoryQuerySet.for_list`."""
        return super().get_queryset(request, exclude_parameters).defer(*APP_SECRETS)

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        health = endpoints.of_apps(self.result_list)
        for app in self.result_list:
            app.health = health[app.pk]


class AppHealthAdmin(BulkAdmin[App]):
    """The columns of the list. The rows have `watch_count`, `failed_count`, `last_success` and `health`."""

    list_class = HealthChangeList
    list_display = ("name", "state")  # and those that get_list_display adds

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        """Link the numbers for users who can view the repositories, and add a button for those who can re-sync."""
        can_link = request.user.has_perm(Permission.VIEW_WATCHES)

        @admin.display(ordering="watch_count")
        def repositories(app: Any) -> SafeString | str:
            count = app.watch_count
            label = f"{counted(count, 'repository')} of {app.name}"
            return _link("apprepository", app, number(count), label) if can_link and count else number(count)

        @admin.display(ordering="failed_count")
        def failing(app: Any) -> SafeString | str:
            count = app.failed_count
            if not count:
                return "0"
            shown = format_html('<span class="bad">{}{}</span>', icon("cross"), number(count))
            label = f"{counted(count, 'failing repository')} of {app.name}"
            return _link("failedsync", app, shown, label) if can_link else shown

        columns = (*self.list_display, repositories, failing, "accepted", "p95", "last_success", "last_day")
        if not self.has_resync_permission(request):
            return columns
        back = request.get_full_path()

        @admin.display(description=widgets.ACTIONS)
        def row_buttons(app: Any) -> SafeString:
            what = f"all repositories of {app.name}"
            button = widgets.resync_link(app, back, what, "Re-sync all") if app.watch_count else ""
            return format_html('<div class="row-buttons">{}</div>', button)

        return (*columns, row_buttons)

    state = column("status", lambda app: badge(*endpoints.condition(app)), ordering="paused")

    @admin.display(description="accepted")
    def accepted(self, app: Any) -> SafeString | str:
        """Return the share of the latest requests that the app accepted."""
        stats = app.health.stats
        if stats is None:
            text = "No recent requests" if app.health.is_known else "Unknown"
            return format_html('<span class="quiet">{}</span>', text)
        share = format_html('{} <span class="quiet">of {}</span>', format_share(stats.accepted), stats.requests)
        return format_html('<span class="bad">{}{}</span>', icon("warning"), share) if stats.is_unhealthy else share

    p95 = column("p95", lambda app: milliseconds(app.health.stats.p95) if app.health.stats else "")
    """The time within which 95% of the latest requests were answered."""
    last_success = column(
        "last success",
        lambda app: ago(app.last_success) if app.last_success else "",
        ordering=F("last_success").asc(nulls_first=True),
    )
    """The time of the last success. Apps that never had one sort before the oldest."""
    last_day = column("last 24 hours", lambda app: sparkline(app.health.hours))


def sparkline(hours: Sequence[tuple[int, int]]) -> SafeString:
    """Return the bars of the last hours (delivered files, failed attempts) as SVG, with the totals as text."""
    delivered, failed = (sum(part) for part in zip(*hours, strict=True))
    text = f"{counted(delivered, 'file')} delivered" if delivered else "Nothing delivered"
    text += f", {counted(failed, 'failed attempt')}" if failed else ""
    width = HOURS * SPARK_WIDTH
    good, bad = chart.sparkline(hours)
    return format_html(
        '<svg class="spark" role="img" aria-label="{0} in the last {1} hours" preserveAspectRatio="xMinYMid" viewBox="0 0 {2} {3}">'
        '<title>{0} in the last {1} hours</title><path class="chart-grid" d="M0 {4}h{2}"></path>'
        '<path class="chart-good" d="{5}"></path><path class="chart-bad" d="{6}"></path></svg>',
        text,
        HOURS,
        width,
        SPARK_HEIGHT + 1,
        f"{SPARK_HEIGHT}.5",
        good,
        bad,
    )


def _link(model: str, app: App, content: SafeString | str, label: str) -> SafeString:
    url = reverse(f"admin:deliveries_app_{model}_changelist")
    return format_html('<a href="{}?app={}" aria-label="{}">{}</a>', url, app.pk, label, content)
