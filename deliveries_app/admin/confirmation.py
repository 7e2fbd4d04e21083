"""The confirmation page of an admin action: an address of its own that says what is selected.

A page rendered in answer to the action's POST would be lost to a refresh. So the action redirects here, with the ids of
the rows, or, for "select all N", with the filters of the list; GET shows what it would mean, POST acts.

A confirmation is bound to what it showed: the form carries a digest of the rows and the number of their files, and what
has become another set meanwhile, or notably more, is shown once more. A changed status alone is no reason to ask again.
"""

import copy
import hashlib
from collections.abc import Iterable
from typing import Any

from django.contrib.admin import ModelAdmin, helpers
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR
from django.db.models import Model, QuerySet
from django.http import HttpRequest, QueryDict
from django.utils.http import url_has_allowed_host_and_scheme

CHANGED = "What is selected has changed since this page was shown. Look at the numbers once more."
GROWTH_UNASKED = 1.1
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


def selected[M: Model](model_admin: "ModelAdmin[M]", request: HttpRequest) -> QuerySet[M]:
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


def shown(pks: Iterable[int], files: int) -> dict[str, Any]:
    """What the form carries of the rows that its page shows, for `docora/shown.html`."""
    return {"shown_rows": _digest(pks), "shown_files": files}


def has_changed(request: HttpRequest, pks: Iterable[int], files: int) -> bool:
    """Whether the rows are not those that the posted form was shown for, or hold over a tenth more files than then.

    A form that carries nothing was posted by somebody who did not look, and who names the rows in the address.
    """
    rows, before = request.POST.get("shown_rows", ""), request.POST.get("shown_files", "")
    if not rows:
        return False
    return rows != _digest(pks) or not before.isdecimal() or files > int(before[:18]) * GROWTH_UNASKED


def _digest(pks: Iterable[int]) -> str:
    return hashlib.sha256(",".join(map(str, sorted(pks))).encode()).hexdigest()


def next_url(request: HttpRequest, default: str) -> str:
    """Where one came from, if that is a page of this site."""
    wanted = request.GET.get("next", "")
    safe = url_has_allowed_host_and_scheme(
        wanted, allowed_hosts={request.get_host()}, require_https=request.is_secure()
    )
    return wanted if wanted and safe else default
