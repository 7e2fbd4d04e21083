"""Failed syncs: the watched repositories that are failing, grouped by root cause, each group with what to do about it."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app import failing, fragments
from deliveries_app.admin import components, words
from deliveries_app.admin.base import ReadOnlyAdmin
from deliveries_app.admin.bulk import Scope
from deliveries_app.admin.failed_cells import action_cell, cell
from deliveries_app.admin.failed_filters import (
    FailingAppFilter,
    OperationFilter,
    RootCauseFilter,
    StateFilter,
    app_pk,
)
from deliveries_app.admin.retry import RetryAdmin
from deliveries_app.causes import RootCause
from deliveries_app.models import App, BulkOperation, FailedSync
from deliveries_app.services.operations import RETRY_PERMISSION

VIEW_PERMISSION = "deliveries_app.view_apprepository"


def panel(request: HttpRequest, here: str) -> dict[str, Any]:
    """For `docora/failed.html#groups`: the groups, of one app where the list is filtered by it."""
    pk = app_pk(request)
    app = App.objects.filter(pk=pk).first() if pk is not None else None
    found = failing.groups(pk)
    of_app = {"app": str(pk)} if pk is not None else {}
    every = {"all": "1", **of_app, "next": here}
    pages = {group.cause: urlencode({**every, "cause": group.cause.value}) for group in found}
    return {
        "groups": [(group, words.ROOT_HINTS[group.cause], pages[group.cause]) for group in found],
        "failing_count": sum(group.count for group in found),
        "failing_app": app,
        "retry_all": urlencode(every),
        "of_app": urlencode(of_app),
        "shown_cause": request.GET.get("cause", ""),
        "may_retry": request.user.has_perm(RETRY_PERMISSION),
    }


class FailedChangeList(ChangeList):
    """Knows what its panel asks for: its filters, and the rows that it shows."""

    @property
    def live_query(self) -> str:
        query = {"ids": fragments.joined(pair.pk for pair in self.result_list)}
        query |= {name: str(self.params[name]) for name in ("app", "cause") if name in self.params}
        return urlencode(query)


@admin.register(FailedSync)
class FailedSyncAdmin(RetryAdmin[FailedSync], ReadOnlyAdmin[FailedSync]):
    list_display = ("repository_name", "app_name", "state_badge", "cause", "attempts", "since")
    list_display_links = None
    list_filter = (FailingAppFilter, RootCauseFilter, StateFilter, OperationFilter)
    search_fields = ("repository__owner", "repository__name", "app__name", "app__app_id", "last_error")
    search_help_text = "Owner, name, app, or words of the error"
    actions = ("retry",)
    change_list_template = "admin/deliveries_app/failedsync/change_list.html"
    pair_field = "pk"

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedSync]:
        pairs: Any = FailedSync.objects.failing().select_related("app", "repository")
        return failing.with_state(pairs)  # type: ignore[return-value]

    def get_ordering(self, request: HttpRequest) -> list[str | Combinable]:
        return ["cause_order", "app__name", "repository__owner", "repository__name", "pk"]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(VIEW_PERMISSION)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def selected(self, request: HttpRequest) -> QuerySet[Any]:
        """Of rows that are named one by one also those that have been mended since: that is no reason to ask again."""
        rows = super().selected(request)
        if request.GET.get("all") == "1":
            return rows
        pks = [int(part) for part in request.GET.get("ids", "").split(",") if part.isdecimal() and len(part) < 19]
        return FailedSync.objects.alive().filter(pk__in=pks)

    def scope_of(self, request: HttpRequest, queryset: QuerySet[FailedSync]) -> Scope:
        if request.GET.get("all") != "1":
            return Scope()
        filters = {name for name, value in request.GET.items() if value and name not in {"all", "next", "p"}}
        if not filters:
            return Scope(title="Retry all failed")
        if filters == {"app"} and (pk := app_pk(request)):
            return Scope(App.objects.filter(pk=pk).first())
        cause = request.GET.get("cause", "")
        return Scope(title=f"Retry · {RootCause(cause).label}" if cause in RootCause.values else "")

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """A failing repository has no page beside its own."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(reverse("admin:deliveries_app_apprepository_change", args=[object_id]))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        here = request.get_full_path()
        operations = fragments.shown_operations(request, BulkOperation.objects.filter(ended_at=None))
        context = {"operations": operations, "here": here, **panel(request, here), **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return FailedChangeList

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        if not self.has_retry_permission(request):
            return self.list_display
        back = request.get_full_path()

        @admin.display(description="")
        def retry_button(pair: FailedSync) -> SafeString:
            return action_cell(pair, components.retry_button(pair, back))

        return (*self.list_display, retry_button)

    @admin.display(description="repository", ordering="repository__name")
    def repository_name(self, pair: FailedSync) -> SafeString:
        page = reverse("admin:deliveries_app_apprepository_change", args=[pair.pk])
        return format_html('<a href="{}">{}</a>', page, pair.repository)

    @admin.display(description="app", ordering="app__name")
    def app_name(self, pair: FailedSync) -> str:
        return pair.app.name

    @admin.display(description="cause, and what was answered", ordering="cause_order")
    def cause(self, pair: FailedSync) -> SafeString:
        return cell("cause", pair)

    @admin.display(description="attempts", ordering="next_sync_at")
    def attempts(self, pair: FailedSync) -> SafeString:
        return cell("attempts", pair)

    @admin.display(description="failing since", ordering="failing_since")
    def since(self, pair: FailedSync) -> SafeString:
        return cell("since", pair)

    @admin.display(description="state", ordering="state")
    def state_badge(self, pair: FailedSync) -> SafeString:
        return cell("state", pair)
