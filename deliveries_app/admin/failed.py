"""Failed syncs: the failing watches, grouped by root cause, each group with a hint on how to fix it."""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.actors import RETRY_PERMISSION
from deliveries_app.admin import widgets
from deliveries_app.admin.actions import RETRY, BulkAdmin, Scope
from deliveries_app.admin.base import ReadOnlyAdmin
from deliveries_app.models import App, AppRepository, BulkOperation, FailedSync, Outcome, Status, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import failures, help_texts
from deliveries_app.reports.failures import State
from deliveries_app.reports.next_attempt import due_at
from docora.templatetags.docora import ago, badge, status_badge
from docora.text import can_be_id, parse_pk, parse_pks, visible

VIEW_PERMISSION = "deliveries_app.view_apprepository"


def panel_context(request: HttpRequest, here: str) -> dict[str, Any]:
    """Return the context of `docora/failed.html#groups`, for one app if the list is filtered by app."""
    pk = app_pk(request)
    app = App.objects.filter(pk=pk).first() if pk is not None else None
    groups = failures.groups(pk)
    of_app = {"app": str(pk)} if pk is not None else {}
    query = {"all": "1", **of_app, "next": here}
    pages = {group.cause: urlencode({**query, "cause": group.cause.value}) for group in groups}
    return {
        "groups": [(group, help_texts.ROOT_HINTS[group.cause], pages[group.cause]) for group in groups],
        "failing_count": sum(group.count for group in groups),
        "failing_app": app,
        "retry_all": urlencode(query),
        "of_app": urlencode(of_app),
        "shown_cause": request.GET.get("cause", ""),
        "can_retry": request.user.has_perm(RETRY_PERMISSION),
    }


class FailingAppFilter(widgets.AppFilter):
    def apps(self) -> QuerySet[App]:
        return App.objects.filter(pk__in=AppRepository.objects.failing().values("app"))


class RootCauseFilter(admin.SimpleListFilter):
    title = "root cause"
    parameter_name = "cause"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        found = set(AppRepository.objects.failing().order_by().values_list("root_cause", flat=True).distinct())
        return [(cause.value, cause.label) for cause in RootCause if cause.value in found]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(root_cause=self.value()) if self.value() else queryset


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(State.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(state=self.value()) if self.value() else queryset


class OperationFilter(admin.SimpleListFilter):
    """Filter the watches that an operation left failing. Only links from the operation's page set it."""

    title = "operation"
    parameter_name = "operation"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        operation = operation_of(request)
        return [(operation.operation_id, operation.title)] if operation else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if not self.value():
            return queryset
        runs = SyncRun.objects.filter(
            operation__operation_id=self.value(), outcome__in=[Outcome.FAILED, Outcome.PAUSED]
        )
        return queryset.filter(pk__in=runs.values("watch"))


def app_pk(request: HttpRequest) -> int | None:
    """Return the primary key of the app that the list is filtered by."""
    return parse_pk(request.GET.get("app", ""))


def operation_of(request: HttpRequest) -> BulkOperation | None:
    public_id = request.GET.get("operation", "")
    return BulkOperation.objects.filter(operation_id=public_id).first() if public_id and can_be_id(public_id) else None


class FailedChangeList(ChangeList):
    """Provide the query string that the page polls with: its filters and the rows that it shows."""

    @property
    def live_query(self) -> str:
        query = {"ids": progress_context.joined(watch.pk for watch in self.result_list)}
        query |= {name: str(self.params[name]) for name in ("app", "cause") if name in self.params}
        return urlencode(query)


@admin.register(FailedSync)
class FailedSyncAdmin(BulkAdmin[FailedSync], ReadOnlyAdmin[FailedSync]):
    list_display = ("repository_name", "app_name", "state_badge", "cause", "attempts", "since")
    list_display_links = None
    list_filter = (FailingAppFilter, RootCauseFilter, StateFilter, OperationFilter)
    search_fields = ("repository__owner", "repository__name", "app__name", "app__app_id", "last_error")
    search_help_text = "Owner, name, app, or part of the error"
    actions = ("retry",)
    change_list_template = "admin/deliveries_app/failedsync/change_list.html"
    watch_field = "pk"
    bulk_actions = (RETRY,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedSync]:
        watches: Any = FailedSync.objects.failing().select_related("app", "repository")
        return failures.with_state(watches)  # type: ignore[return-value]

    def get_ordering(self, request: HttpRequest) -> list[str | Combinable]:
        return ["cause_order", "app__name", "repository__owner", "repository__name", "pk"]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(VIEW_PERMISSION)

    def selected(self, request: HttpRequest) -> QuerySet[Any]:
        """Include selected rows that no longer fail, so that their recovery does not require confirming again."""
        rows = super().selected(request)
        if request.GET.get("all") == "1":
            return rows
        return FailedSync.objects.alive().filter(pk__in=parse_pks(request.GET.get("ids", "")))

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
        """Redirect to the page of the watch."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(reverse("admin:deliveries_app_apprepository_change", args=[object_id]))

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        here = request.get_full_path()
        operations = progress_context.operation_contexts(request, BulkOperation.objects.filter(ended_at=None))
        context = {"operations": operations, "here": here, **panel_context(request, here), **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return FailedChangeList

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        if not self.has_retry_permission(request):
            return self.list_display
        back = request.get_full_path()

        @admin.display(description="")
        def retry_button(watch: FailedSync) -> SafeString:
            return action_cell(watch, widgets.retry_button(watch, back))

        return (*self.list_display, retry_button)

    @admin.display(description="repository", ordering="repository__name")
    def repository_name(self, watch: FailedSync) -> SafeString:
        page = reverse("admin:deliveries_app_apprepository_change", args=[watch.pk])
        return format_html('<a href="{}">{}</a>', page, watch.repository)

    @admin.display(description="app", ordering="app__name")
    def app_name(self, watch: FailedSync) -> str:
        return watch.app.name

    @admin.display(description="cause and response", ordering="cause_order")
    def cause(self, watch: FailedSync) -> SafeString:
        return cell("cause", watch)

    @admin.display(description="attempts", ordering="next_sync_at")
    def attempts(self, watch: FailedSync) -> SafeString:
        return cell("attempts", watch)

    @admin.display(description="failing since", ordering="failing_since")
    def since(self, watch: FailedSync) -> SafeString:
        return cell("since", watch)

    @admin.display(description="state", ordering="state")
    def state_badge(self, watch: FailedSync) -> SafeString:
        return cell("state", watch)


MAX_RESPONSE_CHARS = 80
_SWAP = SafeString(' hx-swap-oob="true"')
_BADGES = {State.SYNCING: Status.SCANNING, State.RETRYING: Status.PENDING, State.FAILED: Status.FAILED}


def _cause(watch: AppRepository) -> SafeString:
    label = RootCause(watch.root_cause).label
    return format_html("<strong>{}</strong><span>{}</span>{}", label, visible(watch.last_error), _response(watch))


def _response(watch: AppRepository) -> SafeString | str:
    """Return the status code and the start of the response. A tooltip has the whole stored response."""
    if watch.last_status_code is None:
        return ""
    start = watch.last_response[:MAX_RESPONSE_CHARS] + ("…" if len(watch.last_response) > MAX_RESPONSE_CHARS else "")
    whole = visible(watch.last_response)
    return format_html('<code title="{}">{} {}</code>', whole, watch.last_status_code, visible(start))


def _attempts(watch: AppRepository) -> SafeString:
    used = f"{min(watch.retry_count, settings.MAX_RETRY_ATTEMPTS)} of {settings.MAX_RETRY_ATTEMPTS}"
    return format_html(
        '<span>{}</span><span class="quiet">{}</span>',
        "given up" if watch.has_given_up else used,
        _next_attempt(watch),
    )


def _next_attempt(watch: AppRepository) -> SafeString | str:
    if watch.is_syncing:
        return "being tried now"
    if watch.app.paused:
        return "when the app is resumed"
    moment = due_at(watch)
    return "due now" if moment is not None and moment <= timezone.now() else format_html("next {}", ago(moment))


def _state(watch: AppRepository) -> SafeString:
    state = State(watch.state)  # type: ignore[attr-defined]
    return badge(_BADGES.get(state, state.value), state.label)


_CELLS: dict[str, Callable[[AppRepository], SafeString | str]] = {
    "state": _state,
    "cause": _cause,
    "attempts": _attempts,
    "since": lambda watch: ago(watch.failing_since),
}


def cell(name: str, watch: AppRepository, *, refresh: bool = False) -> SafeString:
    """Return one cell of a row. With `refresh`, htmx replaces the cell on the page."""
    return _cell(name, watch.pk, _CELLS[name](watch), refresh=refresh)


def action_cell(watch: AppRepository, button: SafeString) -> SafeString:
    """Return the cell with a row's button. Polls replace it only once the row stops failing."""
    return _cell("action", watch.pk, button, refresh=False)


def _cell(name: str, pk: int, content: SafeString | str, *, refresh: bool) -> SafeString:
    swap = _SWAP if refresh else ""
    return format_html('<div id="failed-{}-{}" class="failed-{}"{}>{}</div>', name, pk, name, swap, content)


def refreshed_cells(pks: Sequence[int]) -> list[SafeString]:
    """Return the current cells of these rows. A row that no longer fails shows its status and no button."""
    rows = AppRepository.objects.alive().filter(pk__in=pks).select_related("app", "repository")
    watches = {watch.pk: watch for watch in failures.with_state(rows)}
    cells = []
    for pk in pks:
        watch = watches.get(pk)
        if watch is not None and watch.is_failing:
            cells += [cell(name, watch, refresh=True) for name in _CELLS]
            continue
        status = status_badge(watch) if watch else badge("ended", "no longer watched")
        contents = dict.fromkeys([*_CELLS, "action"], "") | {"state": status}
        cells += [_cell(name, pk, content, refresh=True) for name, content in contents.items()]
    return cells
