"""Failed syncs: the failing watches, grouped by root cause, each group with a hint on how to fix it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.actors import can_view
from deliveries_app.admin import widgets
from deliveries_app.admin.actions import RETRY, BulkAdmin, Scope
from deliveries_app.admin.base import ReadOnlyAdmin, column
from deliveries_app.admin.confirmation import NOT_FILTERS
from deliveries_app.admin.filters import AppFilter, ChoiceFilter, OperationFilter, StateFilter, apps_given
from deliveries_app.models import (
    App,
    AppRepository,
    FailedSync,
    Outcome,
    Result,
    StateDetail,
    Status,
    SyncRun,
    WatchState,
)
from deliveries_app.models.root_causes import RootCause, label_of
from deliveries_app.models.watches import WATCH_ORDER
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import failures, help_texts
from deliveries_app.reports.next_attempt import next_attempt_of
from docora.templatetags.docora import ago, badge, state_badge, status_with_detail
from docora.text import parse_pks, visible


def panel_context(request: HttpRequest, here: str) -> dict[str, Any]:
    """Return the context of `docora/failed.html#groups`, for the same apps as the list."""
    apps = apps_given(request.GET)
    groups = failures.groups(apps)
    of_app = {name: request.GET[name] for name in AppFilter.parameters if request.GET.get(name)}
    query = {"all": "1", **of_app, "next": here}
    pages = {group.cause: urlencode({**query, "cause": group.cause}) for group in groups}
    return {
        "groups": [
            (group, help_texts.hint_of(group.cause).for_user(request.user), pages[group.cause]) for group in groups
        ],
        "failing_count": sum(group.count for group in groups),
        "failing_app": _name_of_apps(request, apps),
        "retry_all": urlencode(query),
        "of_app": urlencode(of_app),
        "shown_cause": request.GET.get("cause", ""),
    }


def _name_of_apps(request: HttpRequest, apps: Sequence[int] | None) -> str:
    """Return the name of the app that the list is filtered by, or `apps named “Por…”`; empty without such a filter.

    Users who can't view apps get only the names of those that watch repositories.
    """
    if apps is None:
        return ""
    app = App.objects.filter(pk__in=apps).only("name").first() if len(apps) == 1 else None
    can_name = app and (request.user.has_perm(Permission.VIEW_APPS) or app.watches.alive().exists())
    if not can_name and request.GET.get("app", "").strip():
        return "this app" if app else "a deleted app"
    return app.name if app and can_name else f"apps named “{request.GET.get('app_name', '').strip()}…”"


class RootCauseFilter(ChoiceFilter):
    """Filter by root cause. The cards above the list set it, so it offers only the current one."""

    title = "root cause"
    parameters = ("cause",)
    options = {cause.value: (str(cause.label), Q(root_cause=cause)) for cause in RootCause}

    def condition(self) -> Q:
        """Also match a root cause that only a later version knows."""
        return Q(root_cause=self.value)

    def has_output(self) -> bool:
        return bool(self.value)

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        yield self.all_choice(changelist)
        yield from (choice for choice in super().choices(changelist) if choice["selected"])


class FailingStateFilter(StateFilter):
    """A state filter without Up to date, because failing watches never are."""

    options = {state: option for state, option in StateFilter.options.items() if state != WatchState.UP_TO_DATE}


class LeftFailingFilter(OperationFilter):
    """Filter the watches that an operation left failing."""

    def condition(self) -> Q:
        runs = SyncRun.objects.filter(super().condition(), outcome__in=Outcome.with_result(Result.FAILED))
        return Q(pk__in=runs.values("watch"))


class FailedChangeList(ChangeList):
    """Provide the query string that the page polls with: its filters, its rows, and the number of all matching rows.

    A page that is searched or filtered also shows this number beside the search.
    """

    @property
    def live_query(self) -> str:
        query = {"ids": progress_context.joined(watch.pk for watch in self.result_list)}
        query |= {name: str(self.params[name]) for name in (*AppFilter.parameters, "cause") if name in self.params}
        query["count"] = str(self.result_count)
        if self.query or self.has_active_filters:
            query["filtered"] = "1"
        return urlencode(query)


@admin.register(FailedSync)
class FailedSyncAdmin(BulkAdmin[FailedSync], ReadOnlyAdmin[FailedSync]):
    list_class = FailedChangeList
    list_display = ("repository_name", "app_name", "state_badge")  # and those that get_list_display adds
    list_display_links = None
    list_filter = (AppFilter, RootCauseFilter, FailingStateFilter, LeftFailingFilter)
    search_fields = ("repository__owner", "repository__name", "app__name", "app__app_id", "github_url", "last_error")
    search_help_text = "Owner, name, URL, app, or part of the error"
    actions = ("retry",)
    watch_field = "pk"
    bulk_actions = (RETRY,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedSync]:
        watches: Any = FailedSync.objects.failing().with_state().for_list()
        return failures.with_cause_order(watches)  # type: ignore[return-value]

    def get_ordering(self, request: HttpRequest) -> list[str | Combinable]:
        return ["cause_order", *WATCH_ORDER]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return can_view(request.user, AppRepository)

    def selected(self, request: HttpRequest) -> QuerySet[Any]:
        """Include selected rows that no longer fail, so that their recovery does not require confirming again."""
        if request.GET.get("all") == "1":
            return super().selected(request)
        return FailedSync.objects.alive().filter(pk__in=parse_pks(request.GET.get("ids", "")))

    def scope_of(self, request: HttpRequest, queryset: QuerySet[FailedSync]) -> Scope:
        if request.GET.get("all") != "1":
            return Scope()
        filters = {name for name, value in request.GET.items() if value and name not in NOT_FILTERS}
        if not filters:
            return Scope(title="Retry all failed")
        apps = apps_given(request.GET)
        if filters <= set(AppFilter.parameters) and apps is not None and len(apps) == 1:
            return Scope(App.objects.filter(pk__in=apps).first())
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
        operations = progress_context.open_operations(request.user)
        context = {"operations": operations, "here": here, **panel_context(request, here), **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        shown = CellOptions.of_user(request, request.get_full_path())

        @admin.display(description="cause and response" if shown.shows_responses else "cause", ordering="cause_order")
        def cause(watch: FailedSync) -> SafeString:
            return cell("cause", watch, shown)

        @admin.display(description="attempts", ordering="next_sync_at")
        def attempts(watch: FailedSync) -> SafeString:
            return cell("attempts", watch, shown)

        columns = (*self.list_display, cause, "since", attempts)
        if not self.has_retry_permission(request):
            return columns

        @admin.display(description=widgets.ACTIONS)
        def row_buttons(watch: FailedSync) -> SafeString:
            return cell("action", watch, shown)

        return (*columns, row_buttons)

    @admin.display(description="repository", ordering="repository__name")
    def repository_name(self, watch: FailedSync) -> SafeString:
        page = reverse("admin:deliveries_app_apprepository_change", args=[watch.pk])
        return format_html('<a href="{}">{}</a>', page, watch.repository)

    app_name = column("app", lambda watch: watch.app.name, ordering="app__name")
    since = column("failing since", lambda watch: cell("since", watch), ordering="failing_since")
    state_badge = column("status", lambda watch: cell("state", watch), ordering="state_detail")


MAX_RESPONSE_CHARS = 80


@dataclass(frozen=True)
class CellOptions:
    """What the cells offer a user: the text of responses, and buttons that resume a paused app and that retry.

    `back` is the page to which the buttons redirect.
    """

    back: str = ""
    shows_responses: bool = False
    can_resume: bool = False
    can_retry: bool = False

    @classmethod
    def of_user(cls, request: HttpRequest, back: str) -> Self:
        can = request.user.has_perm
        return cls(back, can(Permission.VIEW_PAYLOADS), can(Permission.CHANGE_APPS), can(Permission.RETRY))


def _cause(watch: AppRepository, shown: CellOptions) -> SafeString:
    label = label_of(watch.root_cause)
    response = _response(watch, shown.shows_responses)
    return format_html("<strong>{}</strong><span>{}</span>{}", label, visible(watch.last_error), response)


def _response(watch: AppRepository, shows_text: bool) -> SafeString | str:
    """Return the status code and, with `shows_text`, the start of the response, with a tooltip of all that is stored."""
    if watch.last_status_code is None:
        return ""
    if not shows_text:
        return format_html("<code>{}</code>", watch.last_status_code)
    start = watch.last_response[:MAX_RESPONSE_CHARS] + ("…" if len(watch.last_response) > MAX_RESPONSE_CHARS else "")
    full_text = visible(watch.last_response)
    return format_html('<code title="{}">{} {}</code>', full_text, watch.last_status_code, visible(start))


def _attempts(watch: AppRepository, shown: CellOptions) -> SafeString:
    most = settings.MAX_RETRY_ATTEMPTS
    # After a failure that a retry can't fix, the remaining attempts are not made.
    used = "None left" if watch.status == Status.FAILED else f"{min(watch.retry_count, most)} of {most}"
    button: SafeString | str = ""
    if shown.can_resume and watch.detail == StateDetail.APP_PAUSED:
        button = format_html("<span>{}</span>", widgets.resume_button(watch.app, shown.back, f"resume-{watch.pk}"))
    return format_html('<span>{}</span><span class="quiet">{}</span>{}', used, next_attempt_of(watch).text, button)


_CELLS: dict[str, Callable[[AppRepository, CellOptions], SafeString | str]] = {
    "state": lambda watch, _: status_with_detail(watch),
    "cause": _cause,
    "attempts": _attempts,
    "since": lambda watch, _: ago(watch.failing_since),
    "action": lambda watch, shown: widgets.retry_button(watch, shown.back) if shown.can_retry else "",
}


def cell(name: str, watch: AppRepository, shown: CellOptions | None = None, *, refresh: bool = False) -> SafeString:
    """Return one cell of a row. With `refresh`, htmx replaces the cell on the page."""
    return _cell(name, watch.pk, _CELLS[name](watch, shown or CellOptions()), refresh=refresh)


def _cell(name: str, pk: int, content: SafeString | str, *, refresh: bool) -> SafeString:
    swap = widgets.SWAP if refresh else ""
    return format_html(
        '<div id="failed-{}-{}" class="failed-{}" data-live-part{}>{}</div>', name, pk, name, swap, content
    )


def refreshed_cells(pks: Sequence[int], shown: CellOptions) -> tuple[list[SafeString], int]:
    """Return the current cells of these rows, and how many no longer fail. Rows that don't fail show only their status."""
    watches = AppRepository.objects.for_pages().in_bulk(pks)
    names = [name for name in _CELLS if name != "action" or shown.can_retry]
    cells, recovered = [], 0
    for pk in pks:
        watch = watches.get(pk)
        if watch is not None and watch.is_failing:
            cells += [cell(name, watch, shown, refresh=True) for name in names]
            continue
        recovered += 1
        status = state_badge(watch.state) if watch else badge("cancelled", "No longer watched")
        contents = dict.fromkeys(names, "") | {"state": status}
        cells += [_cell(name, pk, content, refresh=True) for name, content in contents.items()]
    return cells, recovered
