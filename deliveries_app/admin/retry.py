"""Retry in the admin: sends only what is not acknowledged. One repository at once; several after a page that asks."""

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.bulk import BulkAdmin, Scope, Verb
from deliveries_app.models import AppRepositoryQuerySet, BulkOperation
from deliveries_app.services import retry_by_app, retry_many, retry_single
from deliveries_app.services.impact import backlog_of
from deliveries_app.services.operations import RETRY_PERMISSION


def _many(actor: Actor, pairs: AppRepositoryQuerySet, scope: Scope) -> BulkOperation:
    return retry_by_app(actor, scope.app) if scope.app else retry_many(actor, pairs, scope.title)


RETRY = Verb(
    slug="retry-failed",
    permission=RETRY_PERMISSION,
    template="docora/confirm_retry.html",
    words=("Retry", "There is nothing to retry in this selection: none of it is failing.", "Retry queued", "Retrying"),
    among=lambda pairs: pairs.failing(),
    impact=backlog_of,
    single=retry_single,
    many=_many,
)


class RetryAdmin[M: Model](BulkAdmin[M]):
    """Rows of which those that are failing can be retried."""

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, RETRY_PERMISSION)

    def get_urls(self) -> list[URLPattern]:
        return [self.bulk_page(RETRY), *super().get_urls()]

    @admin.action(
        permissions=["retry"],
        description="Retry: sends only what is not acknowledged",
        description_plural="Retry those that are failing: sends only what is not acknowledged",
    )
    def retry(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        return self.lead_to(request, RETRY)
