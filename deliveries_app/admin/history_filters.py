"""Filters of the history lists. An index leads to what most of them leave; the others are looked for in a window
(`deliveries_app.reports.history`)."""

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
from repositories_app.models import Repository


class HistoryFilter(admin.ListFilter):
    """Reads the `parameters` of the address."""

    parameters: tuple[str, ...]

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        given = {name: params.pop(name)[-1].strip() for name in self.parameters if name in params}
        self.used_parameters = {name: value for name, value in given.items() if value}

    def given(self, name: str) -> str:
        return str(self.used_parameters.get(name, ""))

    @property
    def value(self) -> str:
        """Of its only parameter, or its first one."""
        return self.given(self.parameters[0])

    @property
    def in_window(self) -> bool:
        """No index carries what it asks for."""
        return False

    @property
    def is_narrow(self) -> bool:
        """It leaves the rows of a few watches, or of one operation: whatever else is asked can be looked for in these."""
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
        """A link that sets its parameters to these values; None takes one away."""
        given = dict.fromkeys(self.parameters) | values
        return {"selected": selected, "query_string": changelist.get_query_string(given), "display": display}

    def everything(self, changelist: ChangeList) -> dict[str, Any]:
        return self.choice(changelist, "All", not self.used_parameters)

    def fields_of_others(self, changelist: ChangeList) -> list[tuple[str, str]]:
        """What a form of its own has to carry along."""
        others = changelist.filter_params.items()
        return [(name, value) for name, values in others if name not in self.parameters for value in values]


class WordFilter(HistoryFilter):
    """One of a few words."""

    words: list[tuple[str, str]]

    def condition(self) -> Q:
        return self.meaning(self.value) if self.value in dict(self.words) else Q(pk__in=[])

    def meaning(self, word: str) -> Q:
        return Q(**{self.parameters[0]: word})

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        yield self.everything(changelist)
        for value, display in self.words:
            yield self.choice(changelist, display, self.value == value, **{self.parameters[0]: value})


class OutcomeFilter(WordFilter):
    title = "outcome"
    parameters = ("outcome",)
    words = [("open", "open"), *Outcome.choices]

    @property
    def in_window(self) -> bool:
        return self.value not in {"", "open"}  # there is an index of the open ones

    def meaning(self, word: str) -> Q:
        return Q(outcome="" if word == "open" else word)


class ReasonFilter(WordFilter):
    title = "trigger"
    parameters = ("reason",)
    words = list(Reason.choices)

    @property
    def in_window(self) -> bool:
        return bool(self.value)


class KindFilter(ReasonFilter):
    title = "kind"
    parameters = ("kind",)
    words = list(OperationKind.choices)


class StateFilter(WordFilter):
    title = "state"
    parameters = ("state",)
    words = [("running", "running"), ("finished", "finished"), ("cancelled", "cancelled")]

    @property
    def in_window(self) -> bool:
        return self.value not in {"", "running"}

    def meaning(self, word: str) -> Q:
        if word == "running":
            return Q(ended_at=None)
        return Q(ended_at__isnull=False, cancelled_at__isnull=word == "finished")


class ChosenFilter(HistoryFilter):
    """One row of another model, chosen on its page; there is no list of them to choose from."""

    chosen_from: type[Model]

    @property
    def is_narrow(self) -> bool:
        return bool(self.used_parameters)

    def has_output(self) -> bool:
        return bool(self.used_parameters)

    def condition(self) -> Q:
        return Q(**{self.parameters[0]: int(self.value)}) if self.value.isdecimal() else Q(pk__in=[])

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        yield self.everything(changelist)
        rows: QuerySet[Model] = self.chosen_from._default_manager.all()
        row = rows.filter(pk=int(self.value)).first() if self.value.isdecimal() else None
        yield self.choice(changelist, str(row or "not there any more"), True, **{self.parameters[0]: self.value})


class WatchFilter(ChosenFilter):
    title = "watched repository"
    parameters = ("watch",)
    chosen_from = AppRepository


class RepositoryFilter(ChosenFilter):
    title = "Git repository"
    parameters = ("watch__repository",)
    chosen_from = Repository


class OperationFilter(ChosenFilter):
    title = "bulk operation"
    parameters = ("operation",)
    chosen_from = BulkOperation


class AppFilter(HistoryFilter):
    """The app chosen on its page, or those whose name begins as it is typed here."""

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
        return bool(self.used_parameters) and len(self.watches) <= history.MOST_PAIRS

    @cached_property
    def watches(self) -> list[int]:
        watches = AppRepository.objects.filter(app__in=self.apps).order_by()
        return list(watches.values_list("pk", flat=True)[: history.MOST_PAIRS + 1])

    @cached_property
    def apps(self) -> list[int]:
        if self.value:
            return [int(self.value)] if self.value.isdecimal() else []
        named = Q(name__istartswith=self.typed) | Q(app_id=self.typed)
        return list(App.objects.filter(named).order_by().values_list("pk", flat=True))

    def condition(self) -> Q:
        return Q(watch__in=self.watches) if self.is_narrow else Q(watch__app__in=self.apps)

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """The one form, with what it holds now."""
        chosen = App.objects.filter(pk__in=self.apps).first() if self.value else None
        yield {
            **self.everything(changelist),
            "others": self.fields_of_others(changelist),
            "name": self.typed or (chosen.name if chosen else ""),
        }


class OperationAppFilter(AppFilter):
    """Operations for the app, and those that concerned it among others."""

    parameters = ("app", "app_name")

    @property
    def in_window(self) -> bool:
        return False

    @property
    def is_narrow(self) -> bool:
        return False

    def condition(self) -> Q:
        return history.concerning(self.apps)


class PeriodFilter(HistoryFilter):
    """When it was asked for: whole days, the last one included."""

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
        """The end of the period, if it has one."""
        return _midnight(self.last + timedelta(days=1)) if self.last and self.last < date.max else None

    def condition(self) -> Q:
        since = Q(created_at__gte=_midnight(self.first)) if self.first else Q()
        return since & (Q(created_at__lt=self.until) if self.until else Q())

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """Links, and in the first one what the form holds."""
        yield {
            **self.everything(changelist),
            "others": self.fields_of_others(changelist),
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
    except (ValueError, OverflowError) as error:  # the first day of all, east of Greenwich
        raise IncorrectLookupParameters from error
