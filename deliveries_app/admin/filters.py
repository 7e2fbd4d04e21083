"""List filters: the base class, the filter by app, and filters with fixed choices."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.text import capfirst

from deliveries_app.models import App, WatchState
from deliveries_app.models.watch_state import details_of
from deliveries_app.permissions import Permission
from docora.text import parse_pk


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

    def other_parameters(self, changelist: ChangeList) -> list[tuple[str, str]]:
        """Return the search and the other filters' parameters. A filter with its own form submits them as hidden fields."""
        others = [(name, value) for name, values in changelist.filter_params.items() for value in values]
        search = [("q", changelist.query)] if changelist.query else []
        return [*((name, value) for name, value in others if name not in self.parameters), *search]


def apps_named(start: str) -> QuerySet[App]:
    """Return the apps whose name starts with this text, in any case, and the app with this id."""
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

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self.can_suggest = request.user.has_perm(Permission.VIEW_APPS)

    @cached_property
    def apps(self) -> list[int]:
        return apps_given(self.used_parameters, self.parameters) or []

    def condition(self) -> Q:
        return Q(**{f"{self.parameters[0]}__in": self.apps})

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        """Yield the context of the filter's form."""
        chosen = App.objects.filter(pk__in=self.apps).only("name").first() if self.value else None
        yield {
            **self.all_choice(changelist),
            "others": self.other_parameters(changelist),
            "name": chosen.name if chosen else self.given("app_name"),
            "can_suggest": self.can_suggest,
        }


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
    """Filter watches, which the list reads `with_state`, by their state."""

    title = "status"
    parameters = ("state",)
    options = {state.value: (str(state.label), Q(state_detail__in=details_of(state))) for state in WatchState}


class CircuitFilter(ChoiceFilter):
    title = "circuit"
    parameters = ("circuit",)
    options = {"open": ("Open", Q(circuit_open_until__gt=Now()))}
