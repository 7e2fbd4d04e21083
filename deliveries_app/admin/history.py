"""Base classes of the history lists: cheap filters, a bounded search, CSV export."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import URLPattern, path
from django.views.decorators.http import require_safe

from deliveries_app.admin.base import ReadOnlyAdmin, column
from deliveries_app.admin.filters import HistoryFilter, PeriodFilter
from deliveries_app.reports import history
from docora.templatetags.docora import ago, duration
from docora.web.csv_export import Cell, attachment
from docora.web.paginators import BoundedPaginator


class HistoryList(ChangeList):
    """A change list that searches only a window of recent rows if no index supports the filters.

    `window_from` is the start of that window, or None if all rows were searched.
    """

    window_from: datetime | None = None
    window_until: datetime | None = None
    window = history.WINDOW

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> QuerySet[Any]:
        model_admin: Any = self.model_admin
        term = self.query.strip()
        search = model_admin.search(term) if term else history.Search(Q())
        rows = super().get_queryset(request, exclude_parameters).filter(search.condition)
        specs = [spec for spec in self.filter_specs if isinstance(spec, HistoryFilter)]
        is_narrow = any(spec.is_narrow for spec in specs)
        self.needs_window = search.in_window or (
            not is_narrow and not self.query and any(spec.in_window for spec in specs)
        )
        return rows

    def get_results(self, request: HttpRequest) -> None:
        """Read a page, of the window if there is one. The export, which may take longer, reads all rows instead."""
        if self.needs_window:
            self.window_until = next((spec.until for spec in self.filter_specs if isinstance(spec, PeriodFilter)), None)
            self.window_from = history.window_start(self.model._default_manager.all(), self.window_until)
            if self.window_from:
                self.queryset = self.queryset.filter(created_at__gte=self.window_from)
        super().get_results(request)


class HistoryAdmin[M: Model](ReadOnlyAdmin[M]):
    """A list with the newest rows first, and a CSV download of the rows that match the filters."""

    list_class = HistoryList
    change_list_template = "admin/deliveries_app/history/list.html"
    paginator = BoundedPaginator
    sortable_by = ("requested",)  # only the time has an index
    search_fields = ("pk",)  # only shows the search box: see `search`
    search: Callable[[str], history.Search]
    """A static method that returns the search for the text in the search box."""
    csv_name: str
    csv_header: Sequence[str]

    @abstractmethod
    def csv_rows(self, page: list[M]) -> list[Sequence[Cell]]:
        """Return one row per object, in the order of `csv_header`."""

    def related_link(self, request: HttpRequest) -> tuple[str, str] | None:
        """Return the label and URL of a link to related history of the app that the list is filtered by."""
        return None

    def get_search_results(self, request: HttpRequest, queryset: QuerySet[M], search_term: str) -> Any:
        return queryset, False  # the change list applies `search`

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        context = {
            "export": self.url_of("export") if self.has_export_permission(request) else "",
            "related_link": self.related_link(request),
            **(extra_context or {}),
        }
        return super().changelist_view(request, context)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_safe(self.export))
        return [path("export/", view, name=self.url_name("export")), *super().get_urls()]

    requested = column("requested", lambda row: ago(row.created_at), ordering="created_at")
    took = column("duration", lambda row: duration(history.seconds(row)))

    def has_export_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def export(self, request: HttpRequest) -> HttpResponseBase:
        """Download the filtered list as CSV, newest first."""
        if not self.has_export_permission(request):
            raise PermissionDenied
        try:
            rows = self.filtered_rows(request)
        except IncorrectLookupParameters:
            return HttpResponseRedirect(f"{self.list_url}?{ERROR_FLAG}=1")
        pages = (self.csv_rows(page) for page in history.pages(rows))
        return attachment(self.csv_name, self.csv_header, pages)
