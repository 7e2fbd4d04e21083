"""Force re-sync in the admin: everything is sent again, and so every one passes a confirmation page."""

from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.bulk import BulkAdmin, Scope, Verb
from deliveries_app.models import AppRepositoryQuerySet, BulkOperation
from deliveries_app.services import resync_by_app, resync_many, resync_single
from deliveries_app.services.impact import impact_of
from deliveries_app.services.operations import RESYNC_PERMISSION


def _many(actor: Actor, pairs: AppRepositoryQuerySet, scope: Scope) -> BulkOperation:
    return resync_by_app(actor, scope.app) if scope.app else resync_many(actor, pairs)


RESYNC = Verb(
    slug="force-resync",
    permission=RESYNC_PERMISSION,
    template="docora/confirm_resync.html",
    words=("Force re-sync", "There is nothing to re-sync in this selection.", "Re-sync queued", "Re-syncing"),
    among=lambda pairs: pairs,
    impact=impact_of,
    single=resync_single,
    many=_many,
)


class ResyncAdmin[M: Model](BulkAdmin[M]):
    """Rows that can be sent again."""

    def has_resync_permission(self, request: HttpRequest) -> bool:
        return self.may(request, RESYNC_PERMISSION)

    def get_urls(self) -> list[URLPattern]:
        return [self.bulk_page(RESYNC), *super().get_urls()]

    def ask_resync(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        return self.lead_to(request, RESYNC)
