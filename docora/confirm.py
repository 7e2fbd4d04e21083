"""The confirmation page of an admin action: an address of its own that says what is selected.

A page rendered in answer to the action's POST would be lost to a refresh. So the action redirects here, with the ids of
the rows, or, for "select all N", with the filters of the list; GET shows what it would mean, POST acts.
"""

import copy
from typing import Any

from django.contrib.admin import ModelAdmin, helpers
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils.http import url_has_allowed_host_and_scheme

_NO_FILTERS = ("all", "ids", "next", PAGE_VAR)  # "all" means every page


def query_of_selection(request: HttpRequest) -> str:
    """The query string of the confirmation page for the rows that a change list's POST selects."""
    query = QueryDict(mutable=True)
    if request.POST.get("select_across") == "1":
        query.update(request.GET)
        query["all"] = "1"
    else:
        query["ids"] = ",".join(request.POST.getlist(helpers.ACTION_CHECKBOX_NAME))
    query["next"] = request.get_full_path()
    return query.urlencode()


def selected[M: Model](model_admin: ModelAdmin[M], request: HttpRequest) -> QuerySet[M]:
    """The rows that the page's address names, as the model admin lets this user see them."""
    if request.GET.get("all") != "1":
        ids = [part for part in request.GET.get("ids", "").split(",") if part.isdecimal() and len(part) < 19]
        return model_admin.get_queryset(request).filter(pk__in=ids)
    filters = request.GET.copy()
    for name in _NO_FILTERS:
        filters.pop(name, None)
    as_list = copy.copy(request)
    as_list.GET = filters  # type: ignore[assignment]
    try:
        change_list: Any = model_admin.get_changelist_instance(as_list)
        rows = change_list.get_queryset(as_list)
    except IncorrectLookupParameters:  # a filter that means nothing selects nothing
        return model_admin.get_queryset(request).none()
    return model_admin.get_queryset(request).filter(pk__in=rows.order_by().values("pk"))


def way_back(request: HttpRequest, default: str) -> str:
    """Where one came from, if that is a page of this site."""
    wanted = request.GET.get("next", "")
    safe = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return wanted if wanted and safe else default
