"""What a re-sync and a retry of several rows have in common: the action, and the confirmation page that it leads to."""

from collections.abc import Callable
from dataclasses import dataclass
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
from deliveries_app.services import NotFailed, NotFound
from deliveries_app.services.impact import Backlog, Impact
from docora import confirm
from docora.text import counted

_ORDER = ("app__name", "repository__owner", "repository__name", "pk")


@dataclass(frozen=True)
class Scope:
    """What the rows mean in a word, for the title of the operation: all of one `app`, or something with a `title`."""

    app: App | None = None
    title: str = ""


@dataclass(frozen=True)
class Verb:
    """Something that can be done about watched repositories. `among` those of a selection that it is true for, `single`
    does it about one and `many` about several, as one operation. `words`: its title, what it says where there is
    nothing to do, what when one is queued, and the beginning of what it says when several are."""

    slug: str
    permission: str
    template: str
    words: tuple[str, str, str, str]
    among: Callable[[AppRepositoryQuerySet], AppRepositoryQuerySet]
    impact: Callable[[AppRepositoryQuerySet], Impact | Backlog]
    single: Callable[[Actor, AppRepository], object]
    many: Callable[[Actor, AppRepositoryQuerySet, Scope], BulkOperation]


class BulkAdmin[M: Model](DocoraAdmin[M]):
    """A model whose rows stand for watched repositories: `pair_field` of a pair names the row that it belongs to.
    `view` and the verb's permission are enough for its action and its page."""

    pair_field: str

    def pairs_of(self, queryset: QuerySet[M]) -> AppRepositoryQuerySet:
        """The watched repositories that the rows stand for."""
        return AppRepository.objects.filter(**{f"{self.pair_field}__in": queryset.order_by().values("pk")})

    def app_of(self, queryset: QuerySet[M]) -> App | None:
        """The app, if the rows mean all of one app."""
        return None

    def scope_of(self, request: HttpRequest, queryset: QuerySet[M]) -> Scope:
        return Scope(self.app_of(queryset))

    def selected(self, request: HttpRequest) -> QuerySet[M]:
        """The rows that the page's address names."""
        return confirm.selected(self, request)

    def bulk_page(self, verb: Verb) -> URLPattern:
        """The address of the page that asks."""

        def page(request: HttpRequest) -> HttpResponse:
            return self.confirm_bulk(request, verb)

        return path(f"{verb.slug}/", self.admin_site.admin_view(page), name=self.url_name(verb.slug))

    def lead_to(self, request: HttpRequest, verb: Verb) -> HttpResponse:
        """The action itself: it only leads to the page that asks."""
        page = reverse(f"admin:{self.url_name(verb.slug)}")
        return HttpResponseRedirect(f"{page}?{confirm.query_of_selection(request)}")

    def confirm_bulk(self, request: HttpRequest, verb: Verb) -> HttpResponse:
        """GET tells what it would mean; POST with `post=yes` does it."""
        if not self.may(request, verb.permission):
            raise PermissionDenied
        rows = self.selected(request)
        chosen = self.pairs_of(rows).alive()
        pairs = verb.among(chosen).order_by(*_ORDER)
        back = confirm.way_back(request, reverse(f"admin:{self.url_name('changelist')}"))
        impact = verb.impact(pairs)
        title, nothing, _, _ = verb.words
        if impact.pairs == 0:
            self.message_user(request, nothing, messages.WARNING)
            return HttpResponseRedirect(back)
        scope = self.scope_of(request, rows) if impact.pairs > 1 else Scope()
        pks = list(chosen.values_list("pk", flat=True))
        if request.method == "POST" and request.POST.get("post") == "yes":
            if confirm.has_changed(request, pks, impact.files):
                self.message_user(request, confirm.CHANGED, messages.WARNING)
                return HttpResponseRedirect(request.get_full_path())
            return self._do_bulk(request, verb, pairs, impact.pairs, scope, back)
        context: dict[str, Any] = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "impact": impact,
            "app": scope.app,
            "single": impact.sample[0] if impact.pairs == 1 else None,
            "back": back,
            **confirm.shown(pks, impact.files),
        }
        return TemplateResponse(request, verb.template, context)

    def _do_bulk(
        self, request: HttpRequest, verb: Verb, pairs: AppRepositoryQuerySet, count: int, scope: Scope, back: str
    ) -> HttpResponse:
        actor = Actor.of_user(request.user)
        _, _, queued, doing = verb.words
        try:
            if count == 1:
                verb.single(actor, pairs.select_related("app", "repository").get())
                self.message_user(request, queued, messages.SUCCESS)
                return HttpResponseRedirect(back)
            operation = verb.many(actor, pairs, scope)
        except (NotFound, NotFailed) as error:
            self.message_user(request, f"{error}.", messages.WARNING)
            return HttpResponseRedirect(back)
        many = counted(operation.total, "repository", "repositories")
        self.message_user(request, f"{doing} {many}…", messages.SUCCESS)
        return HttpResponseRedirect(operation_page(operation))


def operation_page(operation: BulkOperation) -> str:
    return reverse("admin:deliveries_app_bulkoperation_change", args=[operation.pk])
