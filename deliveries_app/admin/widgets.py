"""Parts shared by several admin pages: a paginator for large tables, a filter, and cells for a watch."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.models import App, AppRepository, DeliveryFailure, FailureKind
from docora.templatetags.docora import ago, icon
from docora.text import parse_pk
from repositories_app.models import Repository

LISTED_FAILURES = 50
ACTIONS = SafeString('<span class="visually-hidden">Actions</span>')
"""Heading of a column of buttons."""


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # not generic at run time
    """A paginator for tables of millions of rows. It stops counting at page 100. Search and filters reach the rest."""

    PAGES = 100

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.order_by()[: self.PAGES * self.per_page].count())


class AppFilter(admin.SimpleListFilter):
    title = "app"
    parameter_name = "app"

    def apps(self) -> QuerySet[App]:
        """Return the apps to choose from. The filter offers the first 200."""
        return App.objects.filter(ended_at=None)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(pk), name) for pk, name in self.apps().values_list("pk", "name")[:200]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        pk = parse_pk(self.value() or "")
        return queryset if pk is None else queryset.filter(app_id=pk)


class CircuitFilter(admin.SimpleListFilter):
    """Filter rows whose circuit is open. `field` is the lookup of the time until which it stays open."""

    title = "circuit"
    parameter_name = "circuit"
    field = "circuit_open_until"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("open", "open")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(**{f"{self.field}__gt": timezone.now()}) if self.value() == "open" else queryset


def failures_context(watch: AppRepository | None) -> dict[str, Any]:
    """Return the context of `docora/failures.html`: the watch's files that were not delivered."""
    failures = DeliveryFailure.objects.filter(watch=watch, kind=FailureKind.FAILED)
    count = failures.count() if watch else 0
    more = max(0, count - LISTED_FAILURES)
    return {"failures": failures[:LISTED_FAILURES], "failure_count": count, "more_failures": more}


def resync_link(watch: AppRepository, back: str) -> SafeString:
    """Return a row's button, which links to the confirmation page."""
    url = reverse("admin:deliveries_app_apprepository_force_resync")
    query = urlencode({"ids": watch.pk, "next": back})
    return format_html(
        '<a class="button button-resync" href="{}?{}" aria-label="Re-sync {}">{}Re-sync</a>',
        url,
        query,
        str(watch),
        icon("resync"),
    )


def retry_button(watch: AppRepository, back: str) -> SafeString:
    """Return a failing row's button, which retries at once.

    It submits the form of `docora/retry_form.html`, which the page includes outside the list's own form.
    """
    url = reverse("admin:deliveries_app_apprepository_retry", args=[watch.pk])
    return format_html(
        '<button type="submit" form="retry-now" class="button button-retry" formaction="{}?{}" aria-label="Retry {}"'
        ' title="Sends only what is not acknowledged">{}Retry</button>',
        url,
        urlencode({"next": back}),
        str(watch),
        icon("retry"),
    )


def circuit_text(repository: Repository) -> SafeString | str:
    return format_html("open, next try {}", ago(repository.circuit_open_until)) if repository.circuit_is_open else ""
