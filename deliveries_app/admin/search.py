"""The search box on every page: apps, repositories, paths, ids of runs and operations, and error texts.

Each kind is searched exactly as its own list searches, so "All N" leads to the same rows. Kinds that the user cannot view
are left out and not queried. An id leads straight to its page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from deliveries_app.models import App, AppRepository, BulkOperation, Delivery, FailedSync, SyncRun
from docora.templatetags.docora import file_path, status_with_detail
from docora.text import can_be_id, lower_first, visible
from docora.web.paginators import BoundedPaginator
from repositories_app.git.url import as_https

SHOWN = 10
MAX_CHARS = 200
MAX_COUNTED = BoundedPaginator.PAGES * 50
"""Lists stop counting here, because millions of paths may start with the same text."""


@dataclass(frozen=True)
class SearchResult:
    """One result: the link's text and URL, its status, and further text."""

    title: SafeString | str
    url: str
    state: SafeString | str = ""
    text: str = ""


def _app(app: App) -> SearchResult:
    return SearchResult(app.name, reverse("admin:deliveries_app_app_change", args=[app.pk]), text=app.app_id)


def _watch(watch: AppRepository) -> SearchResult:
    page = reverse("admin:deliveries_app_apprepository_change", args=[watch.pk])
    error = watch.last_error if isinstance(watch, FailedSync) else ""
    return SearchResult(str(watch), page, status_with_detail(watch), error)


def _file(delivery: Delivery) -> SearchResult:
    page = reverse("admin:deliveries_app_delivery_change", args=[delivery.pk])
    return SearchResult(file_path(delivery.path), page, text=str(delivery.watch))


def repository_term(text: str) -> str:
    """Return the search term for lists of repositories. A URL becomes https, without a trailing slash or `.git`."""
    url = as_https(text)
    return url.removesuffix("/").removesuffix(".git") if "://" in url else phrase(text)


def phrase(text: str) -> str:
    """Quote several words, so that lists search them as a phrase. Single words would match unrelated columns, such as ids."""
    return f'"{text.replace("\\", "\\\\")}"' if len(text.split()) > 1 and '"' not in text else text


_KINDS: tuple[tuple[str, type[Model], Callable[[Any], SearchResult], Callable[[str], str]], ...] = (
    ("Apps", App, _app, phrase),
    ("Watched repositories", AppRepository, _watch, repository_term),
    ("Failed syncs", FailedSync, _watch, repository_term),
    ("Files whose path starts with this", Delivery, _file, str),
)
"""Title, model, the function that shows a row, and the one that turns the text into the search term of the model's list."""
_BY_ID: tuple[tuple[str, type[Model], str], ...] = (
    ("run_", SyncRun, "run_id"),
    ("bulk_", BulkOperation, "operation_id"),
    ("app_", App, "app_id"),
)
"""Prefix of an id, its model, and its field."""


@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """Redirect to the page of the row with this id, or list the results of each kind."""
    text = request.GET.get("q", "").strip()[:MAX_CHARS]
    page = _page_of_id(request, text)
    if page:
        return HttpResponseRedirect(page)
    kinds = [kind for kind in _KINDS if admin.site.get_model_admin(kind[1]).has_view_permission(request)]
    groups = [_search(request, *kind, text) for kind in kinds] if text else []
    searched = [lower_first(title) for title, *_ in kinds]
    if any(admin.site.get_model_admin(model).has_view_permission(request) for _, model, _ in _BY_ID):
        searched.append("exact IDs")
    context = {
        **admin.site.each_context(request),
        "title": f"Search results for “{visible(text)}”" if text else "Search",
        "search_text": text,
        "groups": [group for group in groups if group["rows"]],
        "searched": searched,
    }
    return TemplateResponse(request, "docora/search.html", context)


def _page_of_id(request: HttpRequest, text: str) -> str | None:
    """Return the page of the row with this id, if there is one and the user can view it."""
    for prefix, model, field in _BY_ID:
        model_admin: Any = admin.site.get_model_admin(model)
        if text.startswith(prefix) and can_be_id(text) and model_admin.has_view_permission(request):
            row = model_admin.get_queryset(request).filter(**{field: text}).only("pk").first()
            return str(model_admin.page_of(row)) if row else None
    return None


def _search(
    request: HttpRequest,
    title: str,
    model: type[Model],
    show: Callable[[Any], SearchResult],
    term_of: Callable[[str], str],
    text: str,
) -> dict[str, Any]:
    """Search once, for primary keys in the order of the list, and then read the first rows."""
    model_admin: Any = admin.site.get_model_admin(model)
    term = term_of(text)
    rows: QuerySet[Any] = model_admin.get_queryset(request)
    ordering = model_admin.get_ordering(request)
    ordered = rows.order_by(*ordering) if ordering else rows
    found, _ = model_admin.get_search_results(request, ordered, term)
    pks = list(found.values_list("pk", flat=True)[:MAX_COUNTED])
    if model_admin.list_select_related:
        rows = rows.select_related(*model_admin.list_select_related)
    first = rows.in_bulk(pks[:SHOWN])
    return {
        "title": title,
        "rows": [show(first[pk]) for pk in pks[:SHOWN] if pk in first],
        "total": len(pks),
        "is_cut": len(pks) == MAX_COUNTED,
        "list_url": f"{model_admin.list_url}?{urlencode({'q': term})}",
    }
