"""What a re-sync and a retry of several rows have in common: the action, and the confirmation page that it leads to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from deliveries_app.actors import RESYNC_PERMISSION, RETRY_PERMISSION, Actor
from deliveries_app.admin import confirmation
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, BulkOperation
from deliveries_app.reports.impact import Impact, RetryImpact, impact_of, retry_impact_of
from deliveries_app.services import (
    NotFailed,
    NotFound,
    resync_by_app,
    resync_many,
    resync_single,
    retry_by_app,
    retry_many,
    retry_single,
)
from docora.text import counted

_ORDER = ("app__name", "repository__owner", "repository__name", "pk")


@dataclass(frozen=True)
class Scope:
    """What the rows mean in a word, for the title of the operation: all of one `app`, or something with a `title`."""

    app: App | None = None
    title: str = ""


@dataclass(frozen=True)
class BulkAction:
    """Something that can be done about watched repositories. `among` those of a selection that it is true for, `single`
    does it about one and `many` about several, as one operation. `words`: its title, what it says where there is
    nothing to do, what when one is queued, and the beginning of what it says when several are."""

    slug: str
    permission: str
    template: str
    words: tuple[str, str, str, str]
    among: Callable[[AppRepositoryQuerySet], AppRepositoryQuerySet]
    impact: Callable[[AppRepositoryQuerySet], Impact | RetryImpact]
    single: Callable[[Actor, AppRepository], object]
    many: Callable[[Actor, AppRepositoryQuerySet, Scope], BulkOperation]


class BulkAdmin[M: Model](DocoraAdmin[M]):
    """A model whose rows stand for watched repositories: `watch_field` of a watch names the row that it belongs to.
    `view` and the verb's permission are enough for its action and its page."""

    watch_field: str

    def watches_of(self, queryset: QuerySet[M]) -> AppRepositoryQuerySet:
        """The watched repositories that the rows stand for."""
        return AppRepository.objects.filter(**{f"{self.watch_field}__in": queryset.order_by().values("pk")})

    def app_of(self, queryset: QuerySet[M]) -> App | None:
        """The app, if the rows mean all of one app."""
        return None

    def scope_of(self, request: HttpRequest, queryset: QuerySet[M]) -> Scope:
        return Scope(self.app_of(queryset))

    def selected(self, request: HttpRequest) -> QuerySet[M]:
        """The rows that the page's address names."""
        return confirmation.selected(self, request)

    def bulk_page(self, verb: BulkAction) -> URLPattern:
        """The address of the page that asks."""

        def page(request: HttpRequest) -> HttpResponse:
            return self.confirm_bulk(request, verb)

        return path(f"{verb.slug}/", self.admin_site.admin_view(page), name=self.url_name(verb.slug))

    def lead_to(self, request: HttpRequest, verb: BulkAction) -> HttpResponse:
        """The action itself: it only leads to the page that asks."""
        page = reverse(f"admin:{self.url_name(verb.slug)}")
        return HttpResponseRedirect(f"{page}?{confirmation.query_of_selection(request)}")

    def confirm_bulk(self, request: HttpRequest, verb: BulkAction) -> HttpResponse:
        """GET tells what it would mean; POST with `post=yes` does it."""
        if not self.can(request, verb.permission):
            raise PermissionDenied
        rows = self.selected(request)
        chosen = self.watches_of(rows).alive()
        watches = verb.among(chosen).order_by(*_ORDER)
        back = confirmation.next_url(request, reverse(f"admin:{self.url_name('changelist')}"))
        impact = verb.impact(watches)
        title, nothing, _, _ = verb.words
        if impact.watches == 0:
            self.message_user(request, nothing, messages.WARNING)
            return HttpResponseRedirect(back)
        scope = self.scope_of(request, rows) if impact.watches > 1 else Scope()
        pks = list(chosen.values_list("pk", flat=True))
        if request.method == "POST" and request.POST.get("post") == "yes":
            if confirmation.has_changed(request, pks, impact.files):
                self.message_user(request, confirmation.CHANGED, messages.WARNING)
                return HttpResponseRedirect(request.get_full_path())
            return self._do_bulk(request, verb, watches, impact.watches, scope, back)
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "impact": impact,
            "app": scope.app,
            "single": impact.sample[0] if impact.watches == 1 else None,
            "back": back,
            **confirmation.shown(pks, impact.files),
        }
        return TemplateResponse(request, verb.template, context)

    def _do_bulk(
        self,
        request: HttpRequest,
        verb: BulkAction,
        watches: AppRepositoryQuerySet,
        count: int,
        scope: Scope,
        back: str,
    ) -> HttpResponse:
        actor = Actor.of_user(request.user)
        _, _, queued, doing = verb.words
        try:
            if count == 1:
                verb.single(actor, watches.select_related("app", "repository").get())
                self.message_user(request, queued, messages.SUCCESS)
                return HttpResponseRedirect(back)
            operation = verb.many(actor, watches, scope)
        except (NotFound, NotFailed) as error:
            self.message_user(request, f"{error}.", messages.WARNING)
            return HttpResponseRedirect(back)
        many = counted(operation.total, "repository", "repositories")
        self.message_user(request, f"{doing} {many}…", messages.SUCCESS)
        return HttpResponseRedirect(operation_page(operation))


def operation_page(operation: BulkOperation) -> str:
    return reverse("admin:deliveries_app_bulkoperation_change", args=[operation.pk])


def _resync_many(actor: Actor, watches: AppRepositoryQuerySet, scope: Scope) -> BulkOperation:
    return resync_by_app(actor, scope.app) if scope.app else resync_many(actor, watches)


RESYNC = BulkAction(
    slug="force-resync",
    permission=RESYNC_PERMISSION,
    template="docora/confirm_resync.html",
    words=("Force re-sync", "There is nothing to re-sync in this selection.", "Re-sync queued", "Re-syncing"),
    among=lambda watches: watches,
    impact=impact_of,
    single=resync_single,
    many=_resync_many,
)


class ResyncAdmin[M: Model](BulkAdmin[M]):
    """Rows that can be sent again."""

    def has_resync_permission(self, request: HttpRequest) -> bool:
        return self.can(request, RESYNC_PERMISSION)

    def get_urls(self) -> list[URLPattern]:
        return [self.bulk_page(RESYNC), *super().get_urls()]

    def ask_resync(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        return self.lead_to(request, RESYNC)


def _retry_many(actor: Actor, watches: AppRepositoryQuerySet, scope: Scope) -> BulkOperation:
    return retry_by_app(actor, scope.app) if scope.app else retry_many(actor, watches, scope.title)


RETRY = BulkAction(
    slug="retry-failed",
    permission=RETRY_PERMISSION,
    template="docora/confirm_retry.html",
    words=("Retry", "There is nothing to retry in this selection: none of it is failing.", "Retry queued", "Retrying"),
    among=lambda watches: watches.failing(),
    impact=retry_impact_of,
    single=retry_single,
    many=_retry_many,
)


class RetryAdmin[M: Model](BulkAdmin[M]):
    """Rows of which those that are failing can be retried."""

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.can(request, RETRY_PERMISSION)

    def get_urls(self) -> list[URLPattern]:
        return [self.bulk_page(RETRY), *super().get_urls()]

    @admin.action(
        permissions=["retry"],
        description="Retry: sends only what is not acknowledged",
        description_plural="Retry those that are failing: sends only what is not acknowledged",
    )
    def retry(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        return self.lead_to(request, RETRY)
