"""Delivery records: the last notification of each path to each app, with its attempts, and the action to resend files."""

import re
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.safestring import SafeString

from deliveries_app.admin.base import ReadOnlyAdmin, column
from deliveries_app.admin.confirmation import (
    ConfirmingAdmin,
    ReasonForm,
    confirmed_action,
    is_confirmed,
    next_url,
    selection_context,
)
from deliveries_app.admin.filters import ChoiceFilter, WatchAppFilter, WatchFilter
from deliveries_app.models import AppRepository, Delivery
from deliveries_app.models.deliveries import DeliveryState
from deliveries_app.permissions import Permission
from deliveries_app.reports import attempts, endpoints
from deliveries_app.reports.impact import resend_impact_of
from deliveries_app.reports.next_attempt import next_attempt_of
from deliveries_app.services import MAX_RESENT_AT_ONCE, resend_many
from docora.templatetags.docora import ago, badge, file_path, size
from docora.text import PUBLIC_ID, counted
from docora.web.paginators import BoundedPaginator


class DeliveryAppFilter(WatchAppFilter):
    """A filter by the app's watches, by primary key and not by a join: the index of deliveries begins with the watch."""

    def condition(self) -> Q:
        watches = AppRepository.objects.filter(app__in=self.apps).order_by()
        return Q(watch__in=list(watches.values_list("pk", flat=True)))


class DeliveryStateFilter(ChoiceFilter):
    """Filter unacknowledged deliveries. There is a partial index of them, because almost all are acknowledged."""

    title = "status"
    parameters = ("state",)
    options = {
        "not_delivered": ("Not delivered", Q(acknowledged=False, attempts__gt=0)),
        "unconfirmed": ("Unconfirmed", Q(acknowledged=False, attempts=0)),
    }


@admin.register(Delivery)
class DeliveryAdmin(ConfirmingAdmin[Delivery], ReadOnlyAdmin[Delivery]):
    list_display = ("shown_path", "state", "repository", "app", "updated", "kind", "bytes")
    list_select_related = ("watch__app", "watch__repository")
    list_filter = (DeliveryStateFilter, DeliveryAppFilter, WatchFilter)
    actions = ("resend",)
    search_fields = ("path",)  # only shows the search box: see get_search_results
    search_help_text = "Start of a path, app ID or repository ID"
    page_template = "admin/deliveries_app/delivery/change_form.html"
    paginator = BoundedPaginator
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        return super().get_queryset(request).filter(watch__ended_at=None)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        """Search by public id or path prefix.

        The prefix is a range because SQLite's LIKE ignores case and treats `_` as a wildcard. The order is that of the
        index in use, even if the list is filtered by app or status: newest first would scan millions of rows for a handful
        of matches.
        """
        filters = (*DeliveryStateFilter.parameters, *DeliveryAppFilter.parameters, *WatchFilter.parameters)
        is_filtered = any(request.GET.get(name, "").strip() for name in filters)
        if is_filtered:
            queryset = queryset.order_by("watch_id", "path")
        if not search_term:
            return queryset, False
        if watches := _watches_of(search_term):
            return queryset.filter(watch__in=watches).order_by("watch_id", "path"), False
        has_prefix = Q(path__gte=search_term, path__lt=f"{search_term}\U0010ffff")
        found = queryset.filter(has_prefix)
        return found if is_filtered else found.order_by("path", "pk"), False

    def get_urls(self) -> list[URLPattern]:
        return [self.confirmation_url("resend", self.confirm_resend), *super().get_urls()]

    def has_resend_permission(self, request: HttpRequest) -> bool:
        return self.can(request, Permission.RESYNC)

    resend = confirmed_action("resend", "resend", "Resend this file", "Resend selected files")

    def confirm_resend(self, request: HttpRequest) -> HttpResponse:
        """GET shows what is resent; POST with `post=yes` resends it, or shows the errors of the form."""
        if not self.has_resend_permission(request):
            raise PermissionDenied
        impact = resend_impact_of(self.selected(request))
        back = next_url(request, self.list_url)
        if not impact.files:
            return self.redirect_with_warning(request, back, "The selection has no files to resend.")
        if impact.files > MAX_RESENT_AT_ONCE:
            message = (
                f"The selection has more than {MAX_RESENT_AT_ONCE:,} files, the most that can be resent at once. Narrow it, or "
                "re-sync the repositories: a re-sync sends all of their files."
            )
            return self.redirect_with_warning(request, back, message)
        deliveries, files = impact.deliveries, counted(impact.files, "file")
        data = request.POST if is_confirmed(request) else None
        form = ReasonForm(data, repositories=impact.watches, apps=impact.apps)
        if form.is_bound:
            if response := self.confirm_again(request, deliveries, impact.files):
                return response
            if form.is_valid():
                return self.start_operation(
                    request,
                    lambda actor: resend_many(actor, deliveries, reason=form.cleaned_data["reason"]),
                    lambda _: f"Resend of {files} requested.",
                    back,
                )
        resent = Delivery.objects.filter(pk__in=deliveries).order_by()
        context = {
            "impact": impact,
            "form": form,
            "preflight": endpoints.preflight(AppRepository.objects.filter(pk__in=resent.values("watch"))),
            "back": back,
            **selection_context(deliveries, impact.files),
        }
        return self.render_page(request, "docora/confirm_resend.html", f"Resend {files}", **context)

    def page_context(self, request: HttpRequest, delivery: Delivery) -> dict[str, Any]:
        """Return the context of the page's panel: the delivery, the last attempts, and the time of the next one."""
        watch = AppRepository.objects.with_state().for_list().get(pk=delivery.watch_id)
        is_delivered = delivery.state(watch.resend_floor) == DeliveryState.ACKNOWLEDGED
        return {
            "delivery": delivery,
            "watch": watch,
            "state": state_badge(delivery, watch),
            "acknowledged_at": attempts.acknowledged_at(delivery),
            "next_attempt": None if is_delivered else next_attempt_of(watch, hold_until=delivery.hold_until),
            "attempts": attempts.of_path(request.user, watch, delivery.path, delivery),
        }

    shown_path = column("path", lambda delivery: file_path(delivery.path))
    repository = column("repository", lambda delivery: str(delivery.watch.repository))
    app = column("app", lambda delivery: delivery.watch.app.name)
    state = column("status", lambda delivery: state_badge(delivery, delivery.watch))
    bytes = column("size", lambda delivery: size(delivery.known_size))
    updated = column("last sent", lambda delivery: ago(delivery.updated_at))


def state_badge(delivery: Delivery, watch: AppRepository) -> SafeString:
    match delivery.state(watch.resend_floor):
        case DeliveryState.UNCONFIRMED:
            return badge("failed", "Not delivered") if delivery.attempts else badge("in_doubt", "Unconfirmed")
        case DeliveryState.CLEARED:
            return badge("cleared", "Cleared")
    return badge("delivered", "Delivered")


def _watches_of(public_id: str) -> list[int]:
    """Return the primary keys of the watches of an app or a repository; empty if the text is not a public id."""
    if not re.fullmatch(PUBLIC_ID, public_id):
        return []
    ids = Q(app__app_id=public_id) | Q(repository__repository_id=public_id)
    return list(AppRepository.objects.order_by().filter(ids).values_list("pk", flat=True))
