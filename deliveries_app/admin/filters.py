"""List filters. Those of the history lists use an index, or search a window (`deliveries_app.reports.history`)."""

from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.text import capfirst

from deliveries_app.models import App, AppRepository, BulkOperation, OperationKind, Outcome, Reason, Result, WatchState
from deliveries_app.models.watch_state import details_of
from deliveries_app.permissions import Permission
from deliveries_app.reports import history
from docora.text import parse_pk
from repositories_app.models import Repository


class QueryFilter(admin.ListFilter):
    """A filter by the query parameters named in `parameters`."""

    parameters: tuple[str, ...]

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        given = {name: params.pop(name)[-1].strip() for name in self.parameters if name in params}
        self.used_parameters = {name: value for name, value in given.items() if value}

    def given(self, name: str) -> str:
        return str(self.used_parameters.get(name, ""))

    @property
    def value(self) -> str:
        """The value of the first parameter."""
        return self.given(self.parameters[0])

    def expected_parameters(self) -> list[str | None]:
        return list(self.parameters)

    def has_output(self) -> bool:
        return True

    def condition(self) -> Q:
        raise NotImplementedError

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(self.condition()) if self.used_parameters else queryset

    def choice(self, changelist: ChangeList, display: str, selected: bool, **values: str | None) -> dict[str, Any]:
        """Return a link that sets the parameters to these values. None removes a parameter."""
        given = dict.fromkeys(self.parameters) | values
        return {"selected": selected, "query_string": changelist.get_query_string(given), "display": display}

    def all_choice(self, changelist: ChangeList) -> dict[str, Any]:
        return self.choice(changelist, "All", not self.used_parameters)

    def form_choice(self, changelist: ChangeList, **context: Any) -> dict[str, Any]:
        """Return the first choice of a filter with its own form: the form's context, and the link that resets the filter.

        The form submits the search and the `others`, the parameters of the other filters, as hidden fields.
        """
        others = [
            (name, value)
            for name, values in changelist.filter_params.items()
            for value in values
            if name not in self.parameters
        ]
        search = [("q", changelist.query)] if changelist.query else []
        return {**self.all_choice(changelist), "others": [*others, *search], **context}


def apps_named(start: str) -> QuerySet[App]:
    """Return the apps whose name starts with this text, ignoring case, and the app with this id."""
    return App.objects.filter(Q(name__istartswith=start) | Q(app_id=start))


def apps_given(query: Mapping[str, Any], parameters: tuple[str, str] = ("app", "app_name")) -> list[int] | None:
    """Return the primary keys of the apps that the query selects, by key or start of the name; None without a filter."""
    key, start = (str(query.get(name, "")).strip() for name in parameters)
    if key:
        return [] if (pk := parse_pk(key)) is None else [pk]
    return list(apps_named(start).order_by().values_list("pk", flat=True)) if start else None


class AppFilter(QueryFilter):
    """A filter by one app, set by links, or by the start of an app name, typed with suggestions.

    The first parameter is the lookup from a row to its app.
    """

    title = "app"
    template = "admin/deliveries_app/app_filter.html"
    parameters: tuple[str, str] = ("app", "app_name")

    @cached_property
    def apps(self) -> list[int]:
        return apps_given(self.used_parameters, self.parameters) or []

    def condition(self) -> Q:
        return Q(**{f"{self.parameters[0]}__in": self.apps})

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """Yield the context of the filter's form. It names an app only to users who can view apps, or if the rows do so."""
        can_suggest = self.request.user.has_perm(Permission.VIEW_APPS)
        is_named = self.value and (can_suggest or changelist.result_count)
        chosen = App.objects.filter(pk__in=self.apps).only("name").first() if is_named else None
        name = chosen.name if chosen else self.given("app_name")
        yield self.form_choice(changelist, name=name, can_suggest=can_suggest)


class ChoiceFilter(QueryFilter):
    """A filter with fixed `options`: the label and the condition of each value. Any other value finds nothing."""

    options: ClassVar[dict[str, tuple[str, Q]]]

    def condition(self) -> Q:
        return self.options[self.value][1] if self.value in self.options else Q(pk__in=[])

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        yield self.all_choice(changelist)
        for value, (label, _) in self.options.items():
            yield self.choice(changelist, capfirst(label), self.value == value, **{self.parameters[0]: value})


class StateFilter(ChoiceFilter):
    """A filter of watches by state. The list must read the watches `with_state`."""

    title = "status"
    parameters = ("state",)
    options = {state.value: (str(state.label), Q(state_detail__in=details_of(state))) for state in WatchState}


class CircuitFilter(ChoiceFilter):
    title = "circuit"
    parameters = ("circuit",)
    options = {"open": ("Open", Q(circuit_open_until__gt=Now()))}


class HistoryFilter(QueryFilter):
    """A filter that says whether an index supports it.

    If a filter is `in_window`, `HistoryList` searches only a window, unless another filter `is_narrow`. If the search box
    is used, its own rules decide instead.
    """

    @property
    def in_window(self) -> bool:
        """Whether no index supports the filter, so that only a window of recent rows is searched."""
        return False

    @property
    def is_narrow(self) -> bool:
        """Whether the filter selects so few rows (a few watches, one operation) that the other filters need no index."""
        return False


class HistoryChoiceFilter(ChoiceFilter, HistoryFilter):
    indexed: tuple[str, ...] = ()
    """The options that an index supports."""

    @property
    def in_window(self) -> bool:
        return self.value not in {"", *self.indexed}


def _runs_with(result: Result) -> Q:
    if result == Result.RUNNING:
        return history.PARTS["open"][1]
    if result == Result.SUPERSEDED:
        return history.PARTS["superseded"][1]
    if result not in {Result.FAILED, Result.PARTLY_FAILED}:
        return Q(outcome__in=Outcome.with_result(result))
    is_partial = Q(files_done__gt=0, files_failed__gt=0)
    return Q(outcome__in=Outcome.with_result(Result.FAILED)) & (
        is_partial if result == Result.PARTLY_FAILED else ~is_partial
    )


class OutcomeFilter(HistoryChoiceFilter):
    title = "result"
    parameters = ("outcome",)
    options = {
        "open" if result == Result.RUNNING else result.value: (str(result.label), _runs_with(result))
        for result in Result
        if result != Result.HELD
    }
    indexed = ("open",)


class ReasonFilter(HistoryChoiceFilter):
    title = "trigger"
    parameters = ("reason",)
    options = {reason.value: (str(reason.label), Q(reason=reason, is_resend=False)) for reason in Reason} | {
        OperationKind.RESEND.value: (str(OperationKind.RESEND.label), Q(is_resend=True))
    }


class KindFilter(HistoryChoiceFilter):
    title = "kind"
    parameters = ("kind",)
    options = {kind.value: (str(kind.label), Q(kind=kind)) for kind in OperationKind}


class ProgressFilter(HistoryChoiceFilter):
    title = "progress"
    parameters = ("state",)
    options = history.OPERATIONS
    indexed = ("running", "held")


class LinkedFilter(HistoryFilter):
    """A filter by one row of another model, set by a link from that row's page. It offers no other rows.

    It names the row only to users who can view it.
    """

    linked_model: type[Model]

    @property
    def is_narrow(self) -> bool:
        return bool(self.used_parameters)

    def has_output(self) -> bool:
        return bool(self.used_parameters)

    def condition(self) -> Q:
        pk = parse_pk(self.value)
        return Q(pk__in=[]) if pk is None else Q(**{self.parameters[0]: pk})

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        yield self.all_choice(changelist)
        rows: QuerySet[Model] = self.linked_model._default_manager.all()
        can_view = admin.site.get_model_admin(self.linked_model).has_view_or_change_permission(self.request)
        row = rows.filter(pk=parse_pk(self.value)).first() if can_view else self.value
        yield self.choice(changelist, str(row or "No longer exists"), True, **{self.parameters[0]: self.value})


class WatchFilter(LinkedFilter):
    title = "watched repository"
    parameters = ("watch",)
    linked_model = AppRepository


class RepositoryFilter(LinkedFilter):
    title = "Git repository"
    parameters = ("watch__repository",)
    linked_model = Repository


class OperationFilter(LinkedFilter):
    title = "bulk operation"
    parameters = ("operation",)
    linked_model = BulkOperation


class WatchAppFilter(AppFilter):
    """A filter of rows that refer to a watch, by the watch's app."""

    parameters = ("watch__app", "app_name")


class RunAppFilter(WatchAppFilter, HistoryFilter):
    @property
    def in_window(self) -> bool:
        return bool(self.given("app_name")) and not self.is_narrow

    @property
    def is_narrow(self) -> bool:
        return bool(self.used_parameters) and len(self.watches) <= history.MAX_WATCHES

    @cached_property
    def watches(self) -> list[int]:
        watches = AppRepository.objects.filter(app__in=self.apps).order_by()
        return list(watches.values_list("pk", flat=True)[: history.MAX_WATCHES + 1])

    def condition(self) -> Q:
        return Q(watch__in=self.watches) if self.is_narrow else super().condition()


class OperationAppFilter(AppFilter, HistoryFilter):
    """A filter for operations on the app only, or on several apps including it."""

    def condition(self) -> Q:
        return history.operations_for(self.apps)


class PeriodFilter(HistoryFilter):
    """A filter by the time of the request, in whole days including the last one."""

    title = "period"
    template = "admin/deliveries_app/history/period_filter.html"
    parameters = ("from", "until")
    presets = [("Today", 1), ("Last 7 days", 7), ("Last 30 days", 30)]

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self.first, self.last = self._day("from"), self._day("until")

    def _day(self, name: str) -> date | None:
        try:
            return date.fromisoformat(self.given(name)) if self.given(name) else None
        except ValueError as error:
            raise IncorrectLookupParameters from error

    @property
    def until(self) -> datetime | None:
        """The end of the period, or None if it is open."""
        return _midnight(self.last + timedelta(days=1)) if self.last and self.last < date.max else None

    def condition(self) -> Q:
        since = Q(created_at__gte=_midnight(self.first)) if self.first else Q()
        return since & (Q(created_at__lt=self.until) if self.until else Q())

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """Yield the preset links. The first also has the context of the form."""
        yield self.form_choice(changelist, first=self.first, last=self.last)
        for display, days in self.presets:
            first = timezone.localdate() - timedelta(days=days - 1)
            selected = (self.first, self.last) == (first, None)
            yield self.choice(changelist, display, selected, **{"from": first.isoformat()})


def _midnight(day: date) -> datetime:
    try:
        return timezone.make_aware(datetime.combine(day, time.min))
    except (ValueError, OverflowError) as error:  # 1 January of year 1 in a time zone east of Greenwich
        raise IncorrectLookupParameters from error
