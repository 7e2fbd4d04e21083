"""Delivery records: the last notification of each path to each app. Read-only."""

import re

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from deliveries_app.admin import widgets
from deliveries_app.admin.base import ReadOnlyAdmin
from deliveries_app.admin.filters import AppFilter
from deliveries_app.models import AppRepository, Delivery
from docora.templatetags.docora import ago, badge, size
from docora.text import visible

_PUBLIC_ID = re.compile("[A-Za-z0-9_-]{1,50}")


class DeliveryAppFilter(AppFilter):
    """The keys of the watches, not a join: the index of deliveries begins with the watch."""

    parameters = ("watch__app", "app_name")

    def condition(self) -> Q:
        watches = AppRepository.objects.filter(app__in=self.apps).order_by()
        return Q(watch__in=list(watches.values_list("pk", flat=True)))


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin[Delivery]):
    list_display = ("shown_path", "state", "repository", "app", "updated", "kind", "bytes")
    list_select_related = ("watch__app", "watch__repository")
    list_filter = (DeliveryAppFilter,)
    search_fields = ("path",)  # only shows the search box: see get_search_results
    search_help_text = "Start of a path, app ID or repository ID"
    fieldsets = (
        (None, {"fields": ("path", "watch", "kind", "acknowledged", "bytes", "sha", "attempts", "updated_at")}),
        (
            "Diagnostics",
            {
                "classes": ("collapse",),
                "fields": (
                    "source_path", "mode", "source_key", "sequence", "generation", "acknowledged_sha", "remark", "hold_until",
                ),
            },
        ),
    )  # fmt: skip
    readonly_fields = ("bytes",)
    paginator = widgets.BoundedPaginator
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        return super().get_queryset(request).filter(watch__ended_at=None)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        """Search by public id or path prefix.

        The prefix is a range because SQLite's LIKE ignores case and treats `_` as a wildcard. The order is that of the
        index in use, also if the list is filtered by app: newest first would scan millions of rows for a handful of
        matches.
        """
        of_apps = any(request.GET.get(name, "").strip() for name in DeliveryAppFilter.parameters)
        if of_apps:
            queryset = queryset.order_by("watch_id", "path")
        if not search_term:
            return queryset, False
        if watches := _watches_of(search_term):
            return queryset.filter(watch__in=watches).order_by("watch_id", "path"), False
        has_prefix = Q(path__gte=search_term, path__lt=f"{search_term}\U0010ffff")
        found = queryset.filter(has_prefix)
        return found if of_apps else found.order_by("path", "pk"), False

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Delivery | None:
        """Return the row with its text as the page shows it. Nothing on the page is saved."""
        delivery = super().get_object(request, object_id, from_field)
        if delivery:
            delivery.path, delivery.source_path = visible(delivery.path), visible(delivery.source_path)
        return delivery

    @admin.display(description="path")
    def shown_path(self, delivery: Delivery) -> str:
        return visible(delivery.path)

    @admin.display(description="repository")
    def repository(self, delivery: Delivery) -> str:
        return str(delivery.watch.repository)

    @admin.display(description="app")
    def app(self, delivery: Delivery) -> str:
        return delivery.watch.app.name

    @admin.display(description="status")
    def state(self, delivery: Delivery) -> SafeString:
        if not delivery.acknowledged:
            return badge("in_doubt", "Unconfirmed")
        if delivery.generation < delivery.watch.resend_floor:
            return badge("cleared", "Cleared")
        return badge("delivered", "Delivered")

    @admin.display(description="size")
    def bytes(self, delivery: Delivery) -> str:
        return size(delivery.known_size)

    @admin.display(description="last sent")
    def updated(self, delivery: Delivery) -> str:
        return ago(delivery.updated_at)


def _watches_of(public_id: str) -> list[int]:
    """Return the keys of the watches of an app or a repository; none if the text is not a public id."""
    if not _PUBLIC_ID.fullmatch(public_id):
        return []
    ids = Q(app__app_id=public_id) | Q(repository__repository_id=public_id)
    return list(AppRepository.objects.order_by().filter(ids).values_list("pk", flat=True))
