"""Filters of the history lists. Most use an index; the others search a window (`deliveries_app.reports.history`)."""

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property

from deliveries_app.models import App, AppRepository, BulkOperation, OperationKind, Outcome, Reason
from deliveries_app.reports import history
from docora.text import parse_pk
from repositories_app.models import Repository


class HistoryFilter(admin.ListFilter):
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

    @property
    def in_window(self) -> bool:
        """Whether no index supports the filter, so that only a window of recent rows is searched."""
        return False

    @property
    def is_narrow(self) -> bool:
        """Whether the filter selects so few rows (a few watches, one operation) that the other filters need no index."""
        return False

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

    def other_parameters(self, changelist: ChangeList) -> list[tuple[str, str]]:
        """Return the parameters of the other filters. A filter with its own form submits them as hidden fields."""
        others = changelist.filter_params.items()
        return [(name, value) for name, values in others if name not in self.parameters for value in values]


class ChoiceFilter(HistoryFilter):
    """A filter with a fixed list of choices."""

    options: list[tuple[str, str]]
    indexed = ""
    """The option that an index supports."""

    @property
    def in_window(self) -> bool:
        return self.value not in {"", self.indexed}

    def condition(self) -> Q:
        return self.condition_of(self.value) if self.value in dict(self.options) else Q(pk__in=[])

    def condition_of(self, value: str) -> Q:
        return Q(**{self.parameters[0]: value})

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        yield self.all_choice(changelist)
        for value, display in self.options:
            yield self.choice(changelist, display, self.value == value, **{self.parameters[0]: value})


class OutcomeFilter(ChoiceFilter):
    title = "outcome"
    parameters = ("outcome",)
    options = [("open", "open"), *Outcome.choices]
    indexed = "open"

    def condition_of(self, value: str) -> Q:
        return Q(outcome="" if value == "open" else value)


class ReasonFilter(ChoiceFilter):
    title = "trigger"
    parameters = ("reason",)
    options = list(Reason.choices)


class KindFilter(ChoiceFilter):
    title = "kind"
    parameters = ("kind",)
    options = list(OperationKind.choices)


class StateFilter(ChoiceFilter):
    title = "state"
    parameters = ("state",)
    options = [("running", "running"), ("finished", "finished"), ("cancelled", "cancelled")]
    indexed = "running"

    def condition_of(self, value: str) -> Q:
        if value == "running":
            return Q(ended_at=None)
        return Q(ended_at__isnull=False, cancelled_at__isnull=value == "finished")


class LinkedFilter(HistoryFilter):
    """A filter by one row of another model, set by a link from that row's page. It offers no other rows."""

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
        row = rows.filter(pk=parse_pk(self.value)).first()
        yield self.choice(changelist, str(row or "no longer exists"), True, **{self.parameters[0]: self.value})


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


class AppFilter(HistoryFilter):
    """A filter by one app (set by a link from its page), or by the start of an app name (typed here)."""

    title = "app"
    template = "admin/deliveries_app/history/app_filter.html"
    parameters = ("watch__app", "app_name")

    @property
    def typed(self) -> str:
        return self.given("app_name")

    @property
    def in_window(self) -> bool:
        return bool(self.typed) and not self.is_narrow

    @property
    def is_narrow(self) -> bool:
        return bool(self.used_parameters) and len(self.watches) <= history.MAX_WATCHES

    @cached_property
    def watches(self) -> list[int]:
        watches = AppRepository.objects.filter(app__in=self.apps).order_by()
        return list(watches.values_list("pk", flat=True)[: history.MAX_WATCHES + 1])

    @cached_property
    def apps(self) -> list[int]:
        if self.value:
            return [] if (pk := parse_pk(self.value)) is None else [pk]
        named = Q(name__istartswith=self.typed) | Q(app_id=self.typed)
        return list(App.objects.filter(named).order_by().values_list("pk", flat=True))

    def condition(self) -> Q:
        return Q(watch__in=self.watches) if self.is_narrow else Q(watch__app__in=self.apps)

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """Yield the context of the filter's form."""
        chosen = App.objects.filter(pk__in=self.apps).first() if self.value else None
        yield {
            **self.all_choice(changelist),
            "others": self.other_parameters(changelist),
            "name": self.typed or (chosen.name if chosen else ""),
        }


class OperationAppFilter(AppFilter):
    """A filter for operations on this app only or on several apps including this one."""

    parameters = ("app", "app_name")

    @property
    def in_window(self) -> bool:
        return False

    @property
    def is_narrow(self) -> bool:
        return False

    def condition(self) -> Q:
        return history.operations_for(self.apps)


class PeriodFilter(HistoryFilter):
    """A filter by the time of the request, in whole days including the last one."""

    title = "period"
    template = "admin/deliveries_app/history/period_filter.html"
    parameters = ("from", "until")
    presets = [("Today", 1), ("7 days", 7), ("30 days", 30)]

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
        yield {
            **self.all_choice(changelist),
            "others": self.other_parameters(changelist),
            "first": self.first,
            "last": self.last,
        }
        for display, days in self.presets:
            first = timezone.localdate() - timedelta(days=days - 1)
            selected = (self.first, self.last) == (first, None)
            yield self.choice(changelist, display, selected, **{"from": first.isoformat()})


def _midnight(day: date) -> datetime:
    try:
        return timezone.make_aware(datetime.combine(day, time.min))
    except (ValueError, OverflowError) as error:  # 1 January of year 1, east of Greenwich
        raise IncorrectLookupParameters from error
