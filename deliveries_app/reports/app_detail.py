"""Data for the app page and for the fragment that refreshes it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import AnonymousUser, User
from django.core.paginator import Page, Paginator
from django.db.models import F
from django.http import QueryDict
from django.urls import reverse

from deliveries_app import actors
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, WatchState
from deliveries_app.monitoring.counts import count_watches
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.progress.live import Progress
from deliveries_app.reports import endpoints, failing_files
from deliveries_app.reports.history import containing
from deliveries_app.reports.next_attempt import NextAttempt, next_attempt_of
from docora.text import counted

PER_PAGE = 50
RECENT_OPERATIONS = 5
MAX_SEARCH = 200
STATUSES = [("", "Any status"), ("failing", "Failing (any status)"), *WatchState.choices]
_SORTS = {
    "repository": ("Repository", ("repository__owner", "repository__name")),
    "status": ("Status", ("state_detail",)),
    "synced": ("Last complete sync", ("last_synced_at",)),
    "files": ("Files", ("tree_files",)),
}
"""Column name → heading and the columns to sort by."""


@dataclass(frozen=True)
class TableQuery:
    """Filter and order from the query string, reduced to values the table supports. `order` is a key of `_SORTS` or `-` and a key."""

    search: str = ""
    status: str = ""
    order: str = "repository"

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "TableQuery":
        status, order = query.get("status", ""), query.get("o", "")
        return cls(
            search=query.get("q", "").strip()[:MAX_SEARCH],
            status=status if status in dict(STATUSES) else "",
            order=order if order.removeprefix("-") in _SORTS else "repository",
        )

    @property
    def is_filtered(self) -> bool:
        return bool(self.search or self.status)

    @property
    def columns(self) -> Iterator[tuple[str, str, str, str]]:
        """The name and the label of each column, the order that its heading links to, and its `aria-sort`."""
        for name, (label, _) in _SORTS.items():
            aria_sort = {name: "ascending", f"-{name}": "descending"}.get(self.order, "")
            yield name, label, f"-{name}" if self.order == name else name, aria_sort

    def apply(self, watches: AppRepositoryQuerySet) -> AppRepositoryQuerySet:
        if self.search:
            columns = ("repository__owner", "repository__name", "repository__canonical_url", "github_url")
            watches = watches.filter(containing(self.search, *columns))
        if self.status == "failing":
            watches = watches.failing()
        elif self.status:
            watches = watches.in_state(self.status)
        keys = [F(name) for name in _SORTS[self.order.removeprefix("-")][1]]
        is_descending = self.order.startswith("-")
        order = [key.desc(nulls_last=True) if is_descending else key.asc(nulls_first=True) for key in keys]
        return watches.order_by(*order, "repository__owner", "repository__name", "pk")


@dataclass(frozen=True)
class Row:
    """A watched repository: its progress while active, its failure, and its next attempt."""

    watch: AppRepository
    progress: Progress | None
    failure: str
    next_attempt: NextAttempt | None


def watches_of(app: App) -> AppRepositoryQuerySet:
    return AppRepository.objects.for_pages().filter(app=app)


def table(app: App, query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of the watched repositories matching the query."""
    table_query = TableQuery.parse(query)
    watches = table_query.apply(watches_of(app))
    page: Page[Any] = Paginator(watches, PER_PAGE).get_page(query.get("p"))
    rows = list(page.object_list)
    counts = count_watches(app)
    return {
        "watched": counts.watches,
        "failing": counts.failing,
        "table_query": table_query,
        "statuses": STATUSES,
        "page": page,
        "rows": rows_of(rows),
        "live_query": progress_context.live_query(rows, with_files=True),
    }


def rows_of(watches: Sequence[AppRepository]) -> list[Row]:
    """Return the rows of these watches, which must be read `with_state` and with their app and repository."""
    progress = progress_context.open_progress(watches)
    return [
        Row(
            watch,
            progress.get(watch.pk),
            failure(watch),
            next_attempt_of(watch) if watch.state != WatchState.UP_TO_DATE else None,
        )
        for watch in watches
    ]


def failure(watch: AppRepository) -> str:
    """Return `HTTP 500 on 2 files`, or the error; empty if the watch is healthy."""
    if not watch.is_failing:
        return ""
    if watch.last_status_code is None:
        return watch.last_error
    files = f" on {counted(watch.files_undelivered, 'file')}" if watch.files_undelivered else ""
    return f"HTTP {watch.last_status_code}{files}"


def repository_names(app: App, search: str, most: int) -> list[str]:
    """Return the names, `owner/name`, of the first repositories that the table finds with this search, at most `most`."""
    watches = TableQuery(search=search[:MAX_SEARCH]).apply(AppRepository.objects.alive().filter(app=app))
    names = watches.values_list("repository__owner", "repository__name")[:most]
    return [f"{owner}/{name}" for owner, name in names]


def live(user: User | AnonymousUser, app: App, query: QueryDict) -> dict[str, Any]:
    """Return the context of the part of the page that refreshes, except the progress of operations."""
    page = reverse("admin:deliveries_app_app_change", args=[app.pk])
    involving = progress_context.involving(app)
    operations = progress_context.newest_open(user, involving)
    ended = involving.filter(ended_at__isnull=False)[:RECENT_OPERATIONS]
    recent = list(ended) if actors.can_view_operations(user) else []
    context = {
        "app": app,
        "health": endpoints.health(app),
        "operations_shown": operations,
        "operation_ids": progress_context.joined(operation.pk for operation in operations),
        "here": f"{page}?{query.urlencode()}" if query else page,
        "recent": progress_context.of_ended_operations(recent),
        "can_view": user.has_perm(Permission.VIEW_WATCHES),
    }
    if not context["can_view"]:
        return context
    return context | table(app, query) | {"failing_files": failing_files.of_app(app)}
