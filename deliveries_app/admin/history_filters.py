"""Filters of the history lists. Most use an index; the others search a window (`deliveries_app.reports.history`)."""

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import cached_property

from deliveries_app.admin.filters import AppFilter, ChoiceFilter, QueryFilter
from deliveries_app.models import AppRepository, BulkOperation, OperationKind, Outcome, Reason, Result
from deliveries_app.reports import history
from docora.text import parse_pk
from repositories_app.models import Repository


class HistoryFilter(QueryFilter):
    """A filter that says whether an index supports it."""

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
    is_partial = Q(files_done__gt=0, files_failed__gt=0)
    match result:
        case Result.RUNNING:
            return Q(outcome="")
        case Result.PARTLY_FAILED:
            return Q(outcome__in=Outcome.with_result(Result.FAILED)) & is_partial
        case Result.FAILED:
            return Q(outcome__in=Outcome.with_result(Result.FAILED)) & ~is_partial
    return Q(outcome__in=Outcome.with_result(result))


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
    options = {reason.value: (str(reason.label), Q(reason=reason)) for reason in Reason}


class KindFilter(HistoryChoiceFilter):
    title = "kind"
    parameters = ("kind",)
    options = {kind.value: (str(kind.label), Q(kind=kind)) for kind in OperationKind}


class ProgressFilter(HistoryChoiceFilter):
    title = "progress"
    parameters = ("state",)
    options = {
        "running": ("In progress", Q(ended_at=None, held_at=None)),
        "held": ("Held", Q(ended_at=None, held_at__isnull=False)),
        "finished": ("Finished", Q(ended_at__isnull=False, cancelled_at=None)),
        "cancelled": ("Cancelled", Q(ended_at__isnull=False, cancelled_at__isnull=False)),
    }
    indexed = ("running", "held")


class LinkedFilter(HistoryFilter):
    """A filter by one row of another model, set by a link from that row's page. It offers no other rows.

    It names the row only to users who can view it.
    """

    linked_model: type[Model]

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: type[Model], model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        linked = model_admin.admin_site.get_model_admin(self.linked_model)
        self.can_view = linked.has_view_or_change_permission(request)

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
        row = rows.filter(pk=parse_pk(self.value)).first() if self.can_view else self.value
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


class RunAppFilter(AppFilter, HistoryFilter):
    """A filter for the runs of one app, or of the apps whose name starts with a text."""

    parameters = ("watch__app", "app_name")

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
    except (ValueError, OverflowError) as error:  # 1 January of year 1 in a time zone east of Greenwich
        raise IncorrectLookupParameters from error
