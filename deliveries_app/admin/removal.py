"""Removing in the admin: Django's delete page with the numbers, and one page of its own address for a selection."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from deliveries_app.actors import Actor
from deliveries_app.admin import confirmation
from deliveries_app.admin.actions import ResyncAdmin
from deliveries_app.reports.impact import SAMPLE, removal_of


class RemovalAdmin[M: Model](ResyncAdmin[M]):
    """Rows that are removed with the watched repositories that they stand for. `removal_words`: the verb on the button
    and in titles, what a row then is, and the noun of one row and of several."""

    removal_words: tuple[str, str, str, str]
    delete_confirmation_template = "docora/confirm_removal.html"

    def remove(self, actor: Actor, obj: M) -> None:
        """One row, through its service."""
        raise NotImplementedError

    @admin.action(permissions=["delete"], description="Delete", description_plural="Delete")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[M]) -> HttpResponse:
        """In the place of Django's action of this name, which would write every id of the selection into its page. Like
        that one it acts on `post`, and else leads to the page that asks."""
        back = request.get_full_path()
        if request.POST.get("post") == "yes":
            return self._remove(request, queryset, back)
        page = reverse(f"admin:{self.url_name('remove')}")
        return HttpResponseRedirect(f"{page}?{confirmation.query_of_selection(request)}")

    def get_urls(self) -> list[URLPattern]:
        page = path("remove/", self.admin_site.admin_view(self.confirm_removal), name=self.url_name("remove"))
        return [page, *super().get_urls()]

    def confirm_removal(self, request: HttpRequest) -> HttpResponse:
        """GET tells what would go; POST with `post=yes` removes it."""
        if not self.has_delete_permission(request):
            raise PermissionDenied
        rows = confirmation.selected(self, request)
        back = confirmation.next_url(request, self._list())
        if request.method == "POST" and request.POST.get("post") == "yes":
            return self._ask_again(request, rows) or self._remove(request, rows, back)
        about = self._about(rows)
        count = about["row_count"]
        if count == 0:
            self.message_user(request, "There is nothing to remove in this selection.", messages.WARNING)
            return HttpResponseRedirect(back)
        verb, _, one, several = self.removal_words
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"{verb} {count:,} {one if count == 1 else several}",
            "back": back,
            **about,
        }
        return TemplateResponse(request, "docora/confirm_removal.html", context)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Django's page of one row, which an app's new watch makes another one."""
        if request.method == "POST" and self.has_delete_permission(request) and object_id.isdecimal():
            rows = self.get_queryset(request).filter(pk=int(object_id[:18]))
            if answer := self._ask_again(request, rows):
                return answer
        return super().delete_view(request, object_id, extra_context)

    def _ask_again(self, request: HttpRequest, rows: QuerySet[M]) -> HttpResponse | None:
        """Back to the page that asks, where what the posted form was shown for has changed."""
        if not confirmation.has_changed(request, *self._bound_to(rows)):
            return None
        self.message_user(request, confirmation.CHANGED, messages.WARNING)
        return HttpResponseRedirect(request.get_full_path())

    def _bound_to(self, rows: QuerySet[M]) -> tuple[list[int], int]:
        """The rows with the watched repositories that go with them, told apart by their sign; and their files."""
        watches = self.watches_of(rows).alive().order_by()
        found = dict(watches.values_list("pk", "tree_files"))
        return [*rows.order_by().values_list("pk", flat=True), *(-pk for pk in found)], sum(found.values())

    def render_delete_form(self, request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
        """Django's page of one row, with the numbers."""
        obj = context["object"]
        context |= {
            "title": f"{self.removal_words[0]} {obj}",
            "back": self.page_of(obj),
            **self._about(self.get_queryset(request).filter(pk=obj.pk)),
        }
        return super().render_delete_form(request, context)

    def _about(self, rows: QuerySet[M]) -> dict[str, Any]:
        names = [str(row) for row in rows.order_by(*(self.opts.ordering or ()))[:SAMPLE]]
        pks, files = self._bound_to(rows)
        count = sum(pk > 0 for pk in pks)
        return {
            **confirmation.shown(pks, files),
            "removal": removal_of(self.watches_of(rows)),
            "verb": self.removal_words[0],
            "row_count": count,
            "row_names": names,
        }

    def _remove(self, request: HttpRequest, rows: QuerySet[M], back: str) -> HttpResponse:
        actor, selected = Actor.of_user(request.user), list(rows)
        self.log_deletions(request, selected)  # type: ignore[arg-type]  # any sequence of them will do
        for row in selected:
            self.remove(actor, row)
        if selected:
            self.message_user(request, f"{self._many(len(selected))}.", messages.SUCCESS)
        return HttpResponseRedirect(back)

    def _many(self, count: int) -> str:
        _, done, one, several = self.removal_words
        return f"1 {one} is {done}" if count == 1 else f"{count:,} {several} are {done}"

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Nothing is collected: the page says it in numbers, and a million deliveries would help nobody."""
        return [str(obj) for obj in objs], {}, set(), []

    def response_delete(self, request: HttpRequest, obj_display: str, obj_id: int) -> HttpResponse:
        """Back to the list: Django takes it only for those who may change, and says "deleted" of what is unwatched."""
        self.message_user(request, f"{obj_display} is {self.removal_words[1]}.", messages.SUCCESS)
        return HttpResponseRedirect(self._list())

    def delete_model(self, request: HttpRequest, obj: M) -> None:
        self.remove(Actor.of_user(request.user), obj)

    def _list(self) -> str:
        return reverse(f"admin:{self.url_name('changelist')}")
