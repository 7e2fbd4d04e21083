"""The confirmation page of an admin action, and its forms: a page with its own URL, which names the selected rows.

A page rendered in response to the action's POST would be lost on refresh. So the action redirects to the confirmation
page, with the ids of the rows or, for "select all N", with the list's filters. GET shows the impact, POST acts.

The form contains a digest of the selected rows, their number and the number of their files. The user has to confirm
again if the selection has changed since the page was rendered, or if it now has over a tenth more files. A changed
status does not matter.
"""

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin import helpers
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import PAGE_VAR
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import URLPattern, path, reverse

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.models import BulkOperation
from deliveries_app.services import MAX_PACE, NotFailed, NotFound, Rollout
from deliveries_app.services.requests import MAX_REASON_CHARS
from docora.text import parse_pks
from docora.web.redirects import own_url

CHANGED = "The selection has changed. Check the numbers and confirm again."
ALLOWED_GROWTH = 1.1
MANY_APPS, MANY_REPOSITORIES = 10, 1000
"""Above either limit, the user has to type the number of repositories."""
NOT_FILTERS = ("all", "ids", "next", PAGE_VAR)  # "all" covers every page of the list


class ConfirmingAdmin[M: Model](DocoraAdmin[M]):
    """A model admin with confirmation pages. The slug of each is also a part of its URL's name."""

    def confirmation_url(self, slug: str, view: Callable[[HttpRequest], HttpResponse]) -> URLPattern:
        """Return the URL pattern of a confirmation page."""
        return path(f"{slug}/", self.admin_site.admin_view(view), name=self.url_name(slug))

    def selected(self, request: HttpRequest) -> QuerySet[M]:
        """Return the rows that the confirmation page's URL selects, out of those that the list shows to this user."""
        if request.GET.get("all") != "1":
            return self.get_queryset(request).filter(pk__in=parse_pks(request.GET.get("ids", "")))
        filters = request.GET.copy()
        for name in NOT_FILTERS:
            filters.pop(name, None)
        list_request = copy.copy(request)
        list_request.GET = filters  # type: ignore[assignment]
        try:
            return self.filtered_rows(list_request)
        except IncorrectLookupParameters:  # an invalid filter selects nothing
            return self.get_queryset(request).none()

    def confirm_again(
        self, request: HttpRequest, pks: Collection[int], files: int, *, rows_vary: bool = False
    ) -> HttpResponse | None:
        """Redirect back to the confirmation page if it was shown for other rows, or if there are over a tenth more files.

        With `rows_vary`, other rows are accepted unless there are over a tenth more of them. Forms without a digest were not
        rendered by the confirmation page. They act on the rows that the URL names.
        """
        digest = request.POST.get("selection_digest", "")
        rows_differ = _has_grown(request, "selection_rows", len(pks)) if rows_vary else digest != _digest(pks)
        if not digest or not (rows_differ or _has_grown(request, "selection_files", files)):
            return None
        return self.redirect_with_warning(request, request.get_full_path(), CHANGED)

    def start_operation(
        self,
        request: HttpRequest,
        run: Callable[[Actor], BulkOperation],
        describe: Callable[[BulkOperation], str],
        back: str,
    ) -> HttpResponse:
        """Start the operation and redirect to its page, or to `back` if there is nothing left to do.

        `describe` returns the message: `Retry of 3 repositories requested.`
        """
        try:
            operation = run(Actor.of_request(request))
        except (NotFound, NotFailed) as error:
            return self.redirect_with_warning(request, back, f"{error}.")
        page = reverse("admin:deliveries_app_bulkoperation_change", args=[operation.pk])
        return self.redirect_with_message(request, page, describe(operation))


def confirmed_action(slug: str, permission: str, description: str, plural: str) -> Callable[..., HttpResponse]:
    """Return an action that redirects to its confirmation page.

    `description` is the label on a row's page, `plural` the label in a list. `permission` names the model admin's method
    `has_…_permission`.
    """

    @admin.action(permissions=[permission], description=description, description_plural=plural)
    def redirect(model_admin: Any, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse:
        return HttpResponseRedirect(f"{model_admin.url_of(slug)}?{_query_of_selection(request)}")

    return redirect


def is_confirmed(request: HttpRequest) -> bool:
    """Return whether the form of a confirmation page, which extends `docora/confirm.html`, was submitted."""
    return request.method == "POST" and request.POST.get("post") == "yes"


def _query_of_selection(request: HttpRequest) -> str:
    """Return the confirmation page's query string for the rows selected in a change list's POST."""
    query = QueryDict(mutable=True)
    if request.POST.get("select_across") == "1":
        query.update(request.GET)
        query["all"] = "1"
    else:
        query["ids"] = ",".join(request.POST.getlist(helpers.ACTION_CHECKBOX_NAME))
    query["next"] = request.get_full_path()
    return query.urlencode()


def selection_context(pks: Collection[int], files: int) -> dict[str, Any]:
    """Return the values of the hidden fields that describe the selection, in `docora/confirm.html`."""
    return {"selection_digest": _digest(pks), "selection_rows": len(pks), "selection_files": files}


def _has_grown(request: HttpRequest, field: str, now: int) -> bool:
    before = request.POST.get(field, "")
    return not before.isdecimal() or now > int(before[:18]) * ALLOWED_GROWTH


def _digest(pks: Iterable[int]) -> str:
    return hashlib.sha256(",".join(map(str, sorted(pks))).encode()).hexdigest()


def next_url(request: HttpRequest, default: str) -> str:
    """Return the `next` parameter if it points to a page of this site, else `default`."""
    return own_url(request, request.GET.get("next", ""), default)


class ConfirmationForm(forms.Form):
    """The form of an action that needs no input. Subclasses add fields, some only for many `repositories` or `apps`."""

    def __init__(self, data: QueryDict | None, *, repositories: int, apps: int) -> None:
        super().__init__(data, auto_id="%s", label_suffix="")


class ReasonForm(ConfirmationForm):
    """The reason of a bulk operation."""

    reason = forms.CharField(
        label="Reason (optional)",
        required=False,
        max_length=MAX_REASON_CHARS,
        widget=forms.TextInput(
            attrs={"class": "vTextField", "placeholder": "Shown with the bulk operation and in the audit log"}
        ),
    )


class ResyncForm(ReasonForm):
    """The canary, the pace and the reason of a re-sync, and for many repositories their number.

    The canary is preselected for several apps. A POST without these fields releases all repositories at once.
    """

    canary = forms.BooleanField(required=False)
    pace = forms.IntegerField(
        required=False,
        min_value=1,
        max_value=MAX_PACE,
        widget=forms.NumberInput(attrs={"class": "vIntegerField", "aria-describedby": "pace-unit"}),
    )
    number = forms.CharField(
        required=False,
        max_length=20,
        widget=forms.TextInput(attrs={"class": "vIntegerField", "inputmode": "numeric", "autocomplete": "off"}),
    )

    def __init__(self, data: QueryDict | None, *, repositories: int, apps: int) -> None:
        super().__init__(data, repositories=repositories, apps=apps)
        self._repositories = repositories
        self.fields["number"].label = f"Type {repositories:,} to confirm"
        if repositories == 1:
            del self.fields["canary"], self.fields["pace"]
        else:
            what = "one repository per app" if apps > 1 else "one repository"
            self.fields["canary"].initial = apps > 1
            self.fields["canary"].label = f"Canary: sync {what} first, then the rest if it succeeds"
        if apps <= MANY_APPS and repositories <= MANY_REPOSITORIES:
            del self.fields["number"]

    def clean_number(self) -> str:
        typed: str = self.cleaned_data["number"]
        if typed.translate({ord(separator): None for separator in ",. '\u00a0\u202f"}) != str(self._repositories):
            raise forms.ValidationError(f"Type the number of repositories, {self._repositories:,}.")
        return typed

    @property
    def rollout(self) -> Rollout:
        data: dict[str, Any] = self.cleaned_data
        return Rollout(canary=bool(data.get("canary")), pace=data.get("pace"))
