"""The confirmation page of an admin action: a page with its own URL, which names the selected rows.

A page rendered in response to the action's POST would be lost on refresh. So the action redirects to the confirmation
page, with the ids of the rows or, for "select all N", with the list's filters. GET shows the impact, POST acts.

The form carries a digest of the selected rows, their number and that of their files. The user is asked again if the
selection has changed since the page was rendered, or if it now has over a tenth more files. A changed status does not matter.
"""

import copy
import hashlib
from collections.abc import Collection, Iterable
from typing import Any

from django.contrib.admin import ModelAdmin, helpers
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils.http import url_has_allowed_host_and_scheme

from docora.text import parse_pks

CHANGED = "The selection has changed. Check the numbers and confirm again."
ALLOWED_GROWTH = 1.1
_NOT_FILTERS = ("all", "ids", "next", PAGE_VAR)  # "all" covers every page of the list


def query_of_selection(request: HttpRequest) -> str:
    """Return the confirmation page's query string for the rows selected in a change list's POST."""
    query = QueryDict(mutable=True)
    if request.POST.get("select_across") == "1":
        query.update(request.GET)
        query["all"] = "1"
    else:
        query["ids"] = ",".join(request.POST.getlist(helpers.ACTION_CHECKBOX_NAME))
    query["next"] = request.get_full_path()
    return query.urlencode()


def selected[M: Model](model_admin: "ModelAdmin[M]", request: HttpRequest) -> QuerySet[M]:
    """Return the rows that the page's URL selects, out of those that the model admin shows to this user."""
    if request.GET.get("all") != "1":
        return model_admin.get_queryset(request).filter(pk__in=parse_pks(request.GET.get("ids", "")))
    filters = request.GET.copy()
    for name in _NOT_FILTERS:
        filters.pop(name, None)
    list_request = copy.copy(request)
    list_request.GET = filters  # type: ignore[assignment]
    reader: Any = copy.copy(model_admin)
    reader.get_changelist = lambda request: _filtering(model_admin.get_changelist(request))
    try:
        rows: QuerySet[M] = reader.get_changelist_instance(list_request).get_queryset(list_request)
    except IncorrectLookupParameters:  # an invalid filter selects nothing
        return model_admin.get_queryset(request).none()
    return rows


def _filtering(change_list: type[ChangeList]) -> type[ChangeList]:
    """Return a class that only filters: it neither counts the rows nor reads a page of them."""

    class Filtering(change_list):  # type: ignore[misc, valid-type]  # the base class is the model admin's choice
        def get_results(self, request: HttpRequest) -> None:
            pass

    return Filtering


def selection_context(pks: Collection[int], files: int) -> dict[str, Any]:
    """Return the context of `docora/selection.html`, the hidden fields that describe the selection."""
    return {"selection_digest": _digest(pks), "selection_rows": len(pks), "selection_files": files}


def selection_changed(request: HttpRequest, pks: Collection[int], files: int, *, rows_vary: bool = False) -> bool:
    """Return whether the rows differ from those the form was rendered for, or have over a tenth more files.

    With `rows_vary`, other rows are fine unless they are over a tenth more.
    Forms without a digest were not rendered by the confirmation page. They act on the rows that the URL names.
    """
    digest = request.POST.get("selection_digest", "")
    if not digest:
        return False
    rows_differ = _has_grown(request, "selection_rows", len(pks)) if rows_vary else digest != _digest(pks)
    return rows_differ or _has_grown(request, "selection_files", files)


def _has_grown(request: HttpRequest, field: str, now: int) -> bool:
    before = request.POST.get(field, "")
    return not before.isdecimal() or now > int(before[:18]) * ALLOWED_GROWTH


def _digest(pks: Iterable[int]) -> str:
    return hashlib.sha256(",".join(map(str, sorted(pks))).encode()).hexdigest()


def next_url(request: HttpRequest, default: str) -> str:
    """Return the `next` parameter if it points to a page of this site, else `default`."""
    given = request.GET.get("next", "")
    safe = url_has_allowed_host_and_scheme(given, allowed_hosts={request.get_host()}, require_https=request.is_secure())
    return given if given and safe else default
