"""By what the list of failed syncs can be filtered."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from deliveries_app.causes import RootCause
from deliveries_app.failing import State
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, SyncRun

APPS_OFFERED = 50


class FailingAppFilter(admin.SimpleListFilter):
    title = "app"
    parameter_name = "app"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        apps = App.objects.filter(pk__in=AppRepository.objects.failing().values("app"))
        return [(str(pk), name) for pk, name in apps.values_list("pk", "name")[:APPS_OFFERED]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        pk = app_pk(request)
        return queryset if pk is None else queryset.filter(app_id=pk)


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
    """What an operation left failing: the links of its page lead here, and it is offered only then."""

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
        return queryset.filter(pk__in=runs.values("pair"))


def app_pk(request: HttpRequest) -> int | None:
    """The app that the list is filtered by."""
    value = request.GET.get("app", "")
    return int(value) if value.isdecimal() and len(value) < 19 else None


def operation_of(request: HttpRequest) -> BulkOperation | None:
    wanted = request.GET.get("operation", "")
    return BulkOperation.objects.filter(operation_id=wanted).first() if wanted.isprintable() and wanted else None
