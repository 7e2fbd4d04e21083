"""Removal of one row or several: a confirmation page that says what is removed with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.text import get_text_list

from deliveries_app.actors import Actor
from deliveries_app.admin.actions import BulkAdmin
from deliveries_app.admin.confirmation import is_confirmed, next_url, selection_context
from deliveries_app.reports.impact import SAMPLE, removal_of
from docora.text import counted


@dataclass(frozen=True)
class RemovalLabels:
    """The verb on the button and in titles, its past tense, and the noun in singular and plural."""

    verb: str
    past: str
    singular: str
    plural: str


def _sentence_of(names: list[str], more: int, labels: RemovalLabels) -> str:
    """Return the names for a sentence: `Portal`, `Portal and Search`, `Portal, Search and 3 more apps`."""
    listed = [*names, counted(more, f"more {labels.singular}", f"more {labels.plural}")] if more else names
    return get_text_list(listed, "and")


class RemovalAdmin[M: Model](BulkAdmin[M]):
    """A model admin whose rows are removed together with their watches.

    Instead of Django's action `delete_selected`, which writes every selected id into its page, subclasses define one that
    redirects to the confirmation page `remove/`.
    """

    removal_labels: RemovalLabels

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request) and super().has_delete_permission(request, obj)

    def remove(self, actor: Actor, rows: Sequence[M]) -> None:
        """Remove these rows through their service."""
        raise NotImplementedError

    def get_urls(self) -> list[URLPattern]:
        return [self.confirmation_url("remove", self.confirm_removal), *super().get_urls()]

    def confirm_removal(self, request: HttpRequest) -> HttpResponse:
        """GET shows what would be removed; POST with `post=yes` removes it."""
        if not self.has_delete_permission(request):
            raise PermissionDenied
        return self._confirm(request, self.selected(request))

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Confirm and remove one row in the same way. Cancel leads back to its page."""
        if not self.has_delete_permission(request):
            raise PermissionDenied
        obj = self.get_object(request, object_id)
        if obj is None:
            return self.redirect_missing(request, object_id)
        return self._confirm(request, self.get_queryset(request).filter(pk=obj.pk), obj)

    def _confirm(self, request: HttpRequest, rows: QuerySet[M], only: M | None = None) -> HttpResponse:
        labels, removal = self.removal_labels, removal_of(self.watches_of(rows))
        pks = list(rows.order_by().values_list("pk", flat=True))
        selected = [*pks, *(-pk for pk in removal.pks)]  # negative, to tell watches from rows
        back = next_url(request, self.list_url)
        if is_confirmed(request):
            again = self.confirm_again(request, selected, removal.files)
            return again or self._remove(request, rows, back, only)
        if not pks:
            return self._warn_of_empty_selection(request, back)
        names = [str(row) for row in rows.order_by(*(self.opts.ordering or ()))[:SAMPLE]]
        context = {
            **selection_context(selected, removal.files),
            "original": only,
            "back": next_url(request, self.page_of(only)) if only else back,
            "impact": removal,
            "verb": labels.verb,
            "row_count": len(pks),
            "names": _sentence_of(names, len(pks) - len(names), labels),
        }
        title = f"{labels.verb} {only or counted(len(pks), labels.singular, labels.plural)}"
        return self.render_page(request, "docora/confirm_removal.html", title, **context)

    def _remove(self, request: HttpRequest, rows: QuerySet[M], back: str, only: M | None) -> HttpResponse:
        selected, labels = list(rows), self.removal_labels
        self.remove(Actor.of_request(request), selected)
        if not selected:  # another request has just removed them
            return self._warn_of_empty_selection(request, back)
        removed = only or counted(len(selected), labels.singular, labels.plural)
        return self.redirect_with_message(request, back, f"{labels.past} {removed}.")

    def _warn_of_empty_selection(self, request: HttpRequest, back: str) -> HttpResponse:
        message = f"There are no {self.removal_labels.plural} in this selection."
        return self.redirect_with_warning(request, back, message)
