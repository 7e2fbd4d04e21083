"""Force re-sync in the admin: the action, and the confirmation page that every re-sync passes."""

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, BulkOperation
from deliveries_app.services import NotFound, resync_by_app, resync_many, resync_single
from deliveries_app.services.impact import Impact, impact_of
from deliveries_app.services.operations import RESYNC_PERMISSION
from docora import confirm


class ResyncAdmin[M: Model](DocoraAdmin[M]):
    """A model whose rows stand for watched repositories: `pair_field` of a pair names the row that it belongs to.
    `view` and the re-sync permission are enough for the action and its page."""

    pair_field: str

    def pairs_of(self, queryset: QuerySet[M]) -> AppRepositoryQuerySet:
        """The watched repositories that the rows stand for."""
        return AppRepository.objects.filter(**{f"{self.pair_field}__in": queryset.order_by().values("pk")})

    def app_of(self, queryset: QuerySet[M]) -> App | None:
        """The app, if the rows mean all of one app."""
        return None

    def has_resync_permission(self, request: HttpRequest) -> bool:
        return self.may(request, RESYNC_PERMISSION)

    def get_urls(self) -> list[URLPattern]:
        page = path(
            "force-resync/", self.admin_site.admin_view(self.confirm_resync), name=self.url_name("force_resync")
        )
        return [page, *super().get_urls()]

    def ask_resync(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        """The action itself: it only leads to the page that asks."""
        page = reverse(f"admin:{self.url_name('force_resync')}")
        return HttpResponseRedirect(f"{page}?{confirm.query_of_selection(request)}")

    def confirm_resync(self, request: HttpRequest) -> HttpResponse:
        """GET tells what the re-sync would mean; POST with `post=yes` does it."""
        if not self.has_resync_permission(request):
            raise PermissionDenied
        rows = confirm.selected(self, request)
        pairs = self.pairs_of(rows).alive().order_by("app__name", "repository__owner", "repository__name", "pk")
        back = confirm.way_back(request, reverse(f"admin:{self.url_name('changelist')}"))
        impact = impact_of(pairs)
        if impact.pairs == 0:
            self.message_user(request, "There is nothing to re-sync in this selection.", messages.WARNING)
            return HttpResponseRedirect(back)
        app = self.app_of(rows) if impact.pairs > 1 else None
        pks = list(pairs.values_list("pk", flat=True))
        if request.method == "POST" and request.POST.get("post") == "yes":
            if confirm.has_changed(request, pks, impact.files):
                self.message_user(request, confirm.CHANGED, messages.WARNING)
                return HttpResponseRedirect(request.get_full_path())
            return self._resync(request, pairs, impact, app, back)
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": "Force re-sync",
            "opts": self.opts,
            "impact": impact,
            "app": app,
            "single": impact.sample[0] if impact.pairs == 1 else None,
            "back": back,
            **confirm.shown(pks, impact.files),
        }
        return TemplateResponse(request, "docora/confirm_resync.html", context)

    def _resync(
        self, request: HttpRequest, pairs: AppRepositoryQuerySet, impact: Impact, app: App | None, back: str
    ) -> HttpResponse:
        actor = Actor.of_user(request.user)
        try:
            if app is not None:
                operation = resync_by_app(actor, app)
            elif impact.pairs == 1:
                resync_single(actor, pairs.select_related("app", "repository").get())
                self.message_user(request, "Re-sync queued", messages.SUCCESS)
                return HttpResponseRedirect(back)
            else:
                operation = resync_many(actor, pairs)
        except NotFound as error:
            self.message_user(request, f"{error}.", messages.WARNING)
            return HttpResponseRedirect(back)
        noun = "repository" if operation.total == 1 else "repositories"
        self.message_user(request, f"Re-syncing {operation.total:,} {noun}…", messages.SUCCESS)
        return HttpResponseRedirect(operation_page(operation))


def operation_page(operation: BulkOperation) -> str:
    return reverse("admin:deliveries_app_bulkoperation_change", args=[operation.pk])
