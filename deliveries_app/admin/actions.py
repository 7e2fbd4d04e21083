"""The bulk actions "re-sync" and "retry". Each redirects to a confirmation page, which then runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.confirmation import (
    ConfirmationForm,
    ConfirmingAdmin,
    ResyncForm,
    confirmed_action,
    is_confirmed,
    next_url,
    selection_context,
)
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, BulkOperation
from deliveries_app.models.watches import WATCH_ORDER
from deliveries_app.permissions import Permission
from deliveries_app.reports import endpoints
from deliveries_app.reports.impact import Impact, impact_of, retry_impact_of
from deliveries_app.services import resync_by_app, resync_many, retry_by_app, retry_many
from docora.text import counted


@dataclass(frozen=True)
class Scope:
    """What an action is for. `app` is set if it is for a whole app. A `title` replaces the default title of the operation."""

    app: App | None = None
    title: str = ""


@dataclass(frozen=True)
class BulkAction:
    """An action on one or many watches.

    `applicable` keeps the watches of a selection that the action applies to. `run` gets the valid form and starts one bulk
    operation, even for a single watch.
    """

    slug: str
    permission: str
    template: str
    verb: str
    title_all: str
    """Title of the confirmation page for all watches of one app. For other selections, it is the verb and the selection."""
    empty_message: str
    """Shown if no watch of the selection is applicable."""
    applicable: Callable[[AppRepositoryQuerySet], AppRepositoryQuerySet]
    impact: Callable[[AppRepositoryQuerySet], Impact]
    form: type[ConfirmationForm]
    run: Callable[[Actor, AppRepositoryQuerySet, Scope, Any], BulkOperation]
    rows_vary: bool = False
    """Whether the selection may change before the user confirms, because failures come and go. See `confirm_again`."""


def _resync(actor: Actor, watches: AppRepositoryQuerySet, scope: Scope, form: Any) -> BulkOperation:
    reason, rollout = form.cleaned_data["reason"], form.rollout
    if scope.app:
        return resync_by_app(actor, scope.app, reason=reason, rollout=rollout)
    return resync_many(actor, watches, reason=reason, rollout=rollout)


RESYNC = BulkAction(
    slug="force-resync",
    permission=Permission.RESYNC,
    template="docora/confirm_resync.html",
    verb="Re-sync",
    title_all="Re-sync all repositories",
    empty_message="The selection has no repositories to re-sync.",
    applicable=lambda watches: watches,
    impact=impact_of,
    form=ResyncForm,
    run=_resync,
)


RETRY = BulkAction(
    slug="retry-failed",
    permission=Permission.RETRY,
    template="docora/confirm_retry.html",
    verb="Retry",
    title_all="Retry all failed",
    empty_message="The selection has no failing repositories to retry.",
    applicable=lambda watches: watches.failing(),
    impact=retry_impact_of,
    form=ConfirmationForm,
    run=lambda actor, watches, scope, _: (
        retry_by_app(actor, scope.app) if scope.app else retry_many(actor, watches, scope.title)
    ),
    rows_vary=True,
)


def _title(action: BulkAction, impact: Impact, scope: Scope) -> str:
    """Return the title of the confirmation page. For several watches, it is also the label of its button."""
    if impact.watches == 1:
        return f"{action.verb} {impact.sample[0].repository}"
    if scope.app:
        return action.title_all
    return f"{action.verb} {counted(impact.watches, 'repository')}"


class BulkAdmin[M: Model](ConfirmingAdmin[M]):
    """A model admin whose rows represent watches. `watch_field` is the field of `AppRepository` that refers to a row.

    To run an action, a user needs the view permission on the model and the action's own permission.
    """

    watch_field: str
    bulk_actions: Sequence[BulkAction] = (RESYNC,)
    """The actions that have a confirmation page. Subclasses list them in `actions` too, each with its own label."""

    def get_urls(self) -> list[URLPattern]:
        pages = [
            self.confirmation_url(action.slug, partial(self.confirm_bulk, action=action))
            for action in self.bulk_actions
        ]
        return [*pages, *super().get_urls()]

    def has_resync_permission(self, request: HttpRequest) -> bool:
        return self.can(request, Permission.RESYNC)

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.can(request, Permission.RETRY)

    retry = confirmed_action(RETRY.slug, "retry", "Retry", "Retry selected repositories")

    def watches_of(self, queryset: QuerySet[M]) -> AppRepositoryQuerySet:
        """Return the watches of these rows."""
        return AppRepository.objects.filter(**{f"{self.watch_field}__in": queryset.order_by().values("pk")})

    def scope_of(self, request: HttpRequest, queryset: QuerySet[M]) -> Scope:
        return Scope()

    def confirm_bulk(self, request: HttpRequest, action: BulkAction) -> HttpResponse:
        """GET shows the impact; POST with `post=yes` runs the action, or shows the errors of the form."""
        if not self.can(request, action.permission):
            raise PermissionDenied
        rows = self.selected(request)
        chosen = self.watches_of(rows).alive()
        watches = action.applicable(chosen).order_by(*WATCH_ORDER)
        back = next_url(request, self.list_url)
        impact = action.impact(watches)
        if impact.watches == 0:
            return self.redirect_with_warning(request, back, action.empty_message)
        scope = self.scope_of(request, rows) if impact.watches > 1 else Scope()
        pks = list(chosen.values_list("pk", flat=True))
        data = request.POST if is_confirmed(request) else None
        form = action.form(data, repositories=impact.watches, apps=impact.apps)
        if form.is_bound:
            if response := self.confirm_again(request, pks, impact.files, rows_vary=action.rows_vary):
                return response
            if form.is_valid():
                return self.start_operation(
                    request,
                    lambda actor: action.run(actor, watches, scope, form),
                    lambda operation: f"{action.verb} of {counted(operation.total, 'repository')} requested.",
                    back,
                )
        context: dict[str, Any] = {
            "impact": impact,
            "form": form,
            "preflight": endpoints.preflight(watches),
            "app": scope.app,
            "single": impact.sample[0] if impact.watches == 1 else None,
            "back": back,
            **selection_context(pks, impact.files),
        }
        return self.render_page(request, action.template, _title(action, impact, scope), **context)
