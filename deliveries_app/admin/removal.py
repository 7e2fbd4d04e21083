"""Removal: Django's delete page with counts for one row, and a confirmation page with its own URL for several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from deliveries_app.actors import Actor
from deliveries_app.admin.actions import BulkAdmin
from deliveries_app.admin.confirmation import is_confirmed, next_url, selection_context
from deliveries_app.reports.impact import SAMPLE, Removal, removal_of
from docora.text import counted, parse_pk


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
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))


class RemovalAdmin[M: Model](BulkAdmin[M]):
    """A model admin whose rows are removed together with their watches."""

    removal_labels: RemovalLabels
    delete_confirmation_template = "docora/confirm_removal.html"

    def remove(self, actor: Actor, rows: Sequence[M]) -> None:
        """Remove these rows through their service."""
        raise NotImplementedError

    def remove_selected(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        """Replace Django's action `delete_selected`, which writes every selected id into its page.

        Subclasses define the action, each with its own label. Like Django's, it acts if `post` is set; otherwise it
        redirects to the confirmation page.
        """
        if is_confirmed(request):
            return self._remove(request, queryset, request.get_full_path())
        return self.redirect_to_confirmation(request, "remove")

    def get_urls(self) -> list[URLPattern]:
        return [self.confirmation_url("remove", self.confirm_removal), *super().get_urls()]

    def confirm_removal(self, request: HttpRequest) -> HttpResponse:
        """GET shows what would be removed; POST with `post=yes` removes it."""
        if not self.has_delete_permission(request):
            raise PermissionDenied
        rows = self.selected(request)
        back = next_url(request, self.list_url)
        if is_confirmed(request):
            return self._confirm_again(request, rows) or self._remove(request, rows, back)
        removal = self._removal_context(rows)
        count = removal["row_count"]
        if count == 0:
            message = f"There are no {self.removal_labels.plural} in this selection."
            return self.redirect_with_message(request, back, message, messages.WARNING)
        labels = self.removal_labels
        title = f"{labels.verb} {counted(count, labels.singular, labels.plural)}"
        return self.render_page(request, self.delete_confirmation_template, title, back=back, **removal)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Remove one row. Ask again if the selection has changed since the page was shown."""
        pk = parse_pk(object_id)
        if request.method == "POST" and self.has_delete_permission(request) and pk is not None:
            rows = self.get_queryset(request).filter(pk=pk)
            if response := self._confirm_again(request, rows):
                return response
        return super().delete_view(request, object_id, extra_context)

    def _confirm_again(self, request: HttpRequest, rows: QuerySet[M]) -> HttpResponse | None:
        removal = removal_of(self.watches_of(rows))
        return self.confirm_again(request, self._selected_keys(rows, removal), removal.files)

    def _selected_keys(self, rows: QuerySet[M], removal: Removal) -> list[int]:
        """Return the primary keys of the rows, and the negated ones of their watches."""
        return [*rows.order_by().values_list("pk", flat=True), *(-pk for pk in removal.pks)]

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        """Render Django's page for one row, with counts."""
        obj = context["object"]
        context |= {
            "title": f"{self.removal_labels.verb} {obj}",
            "original": obj,
            "back": next_url(request, self.page_of(obj)),
            **self._removal_context(self.get_queryset(request).filter(pk=obj.pk)),
        }
        return super().render_delete_form(request, context)

    def _removal_context(self, rows: QuerySet[M]) -> dict[str, Any]:
        names = [str(row) for row in rows.order_by(*(self.opts.ordering or ()))[:SAMPLE]]
        removal = removal_of(self.watches_of(rows))
        pks = self._selected_keys(rows, removal)
        count = sum(pk > 0 for pk in pks)
        return {
            **selection_context(pks, removal.files),
            "removal": removal,
            "verb": self.removal_labels.verb,
            "row_count": count,
            "names": _sentence_of(names, count - len(names), self.removal_labels),
        }

    def _remove(self, request: HttpRequest, rows: QuerySet[M], back: str) -> HttpResponse:
        selected = list(rows)
        self.remove(Actor.of_request(request), selected)
        if selected:
            labels = self.removal_labels
            removed = counted(len(selected), labels.singular, labels.plural)
            self.message_user(request, f"{labels.past} {removed}.", messages.SUCCESS)
        return HttpResponseRedirect(back)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Collect no related objects: the page shows counts instead of a list of up to a million deliveries."""
        return [str(obj) for obj in objs], {}, set(), []

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: int) -> HttpResponse:
        """Redirect to `next` or the list. Django does so only for users who can change rows, and always says "deleted"."""
        message = f"{self.removal_labels.past} {obj_display}."
        return self.redirect_with_message(request, next_url(request, self.list_url), message)

    def delete_model(self, request: HttpRequest, obj: M) -> None:
        self.remove(Actor.of_request(request), [obj])
