"""Watched repositories: the page that most of an operator's work happens on."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app import fragments, services
from deliveries_app.actors import Actor
from deliveries_app.admin import components, words
from deliveries_app.admin.forms import WatchForm, posted
from deliveries_app.admin.removal import RemovalAdmin
from deliveries_app.admin.retry import RetryAdmin
from deliveries_app.admin.watch_settings import WatchSettingsAdmin, hook_url
from deliveries_app.admin.why import WhyAdmin
from deliveries_app.causes import RootCause
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, BulkOperation, FailureKind
from deliveries_app.services.operations import RETRY_PERMISSION
from deliveries_app.services.watch_settings import PERMISSION as CHANGE_PERMISSION
from docora.confirm import way_back
from docora.templatetags.docora import ago, number

LISTED_FAILURES, LISTED_RUNS = 50, 10


class AppFilter(admin.SimpleListFilter):
    title = "app"
    parameter_name = "app"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(pk), name) for pk, name in App.objects.filter(ended_at=None).values_list("pk", "name")[:200]]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AppRepository]) -> QuerySet[AppRepository]:
        value = self.value()
        return queryset.filter(app_id=int(value)) if value and value.isdecimal() else queryset


class CircuitFilter(components.CircuitFilter):
    field = "repository__circuit_open_until"


class LiveChangeList(ChangeList):
    """Knows which of its rows are worth looking at again in a second."""

    @property
    def live_ids(self) -> str:
        return fragments.live_ids(list(self.result_list))


@admin.register(AppRepository)
class AppRepositoryAdmin(WatchSettingsAdmin, WhyAdmin, RetryAdmin[AppRepository], RemovalAdmin[AppRepository]):
    list_display = (
        "repository_name", "app_name", "status_badge", "synced", "files", "problem", "circuit",
    )  # fmt: skip
    list_display_links = ("repository_name",)
    list_filter = ("status", AppFilter, CircuitFilter)
    search_fields = ("repository__owner", "repository__name", "app__name", "app__app_id", "repository__repository_id")
    search_help_text = "Owner, name, app or id"
    actions = ("force_resync", "retry", "delete_selected")
    removal_words = ("Unwatch", "unwatched", "repository", "repositories")
    change_list_template = "admin/deliveries_app/apprepository/change_list.html"
    page_template = "admin/deliveries_app/apprepository/change_form.html"
    pair_field = "pk"

    def get_queryset(self, request: HttpRequest) -> AppRepositoryQuerySet:
        pairs = AppRepository.objects.alive().select_related("app", "repository")
        return pairs.order_by("app__name", "repository__owner", "repository__name", "pk")

    @admin.action(
        permissions=["resync"],
        description="Force re-sync",
        description_plural="Force re-sync of the selected repositories",
    )
    def force_resync(self, request: HttpRequest, queryset: QuerySet[AppRepository]) -> HttpResponse:
        return self.ask_resync(request, queryset)

    def retry_one(self, request: HttpRequest, pair: AppRepository) -> HttpResponse:
        """The button of one watched repository: at once, since nothing is sent twice by it."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        try:
            services.retry_single(Actor.of_user(request.user), pair)
        except services.NotFailed:
            self.message_user(request, f"{pair} is not failing any more.", messages.WARNING)
        else:
            waits = " It goes out once the app is resumed." if pair.app.paused else ""
            words = f"Retry queued. {pair}: only what is not acknowledged is sent.{waits}"
            self.message_user(request, words, messages.SUCCESS)
        return HttpResponseRedirect(way_back(request, self.page_of(pair)))

    def get_urls(self) -> list[URLPattern]:
        return [self.object_page("retry", self.retry_one, RETRY_PERMISSION), *super().get_urls()]

    @admin.display(description="repository", ordering="repository__name")
    def repository_name(self, pair: AppRepository) -> str:
        return str(pair.repository)

    @admin.display(description="app", ordering="app__name")
    def app_name(self, pair: AppRepository) -> str:
        return pair.app.name

    @admin.display(description="status", ordering="status")
    def status_badge(self, pair: AppRepository) -> SafeString:
        return components.live_status(pair)

    @admin.display(description="last sync", ordering="last_synced_at")
    def synced(self, pair: AppRepository) -> str:
        return ago(pair.last_synced_at)

    @admin.display(description="files delivered", ordering="tree_files")
    def files(self, pair: AppRepository) -> str:
        return number(pair.files_delivered)

    @admin.display(description="last error")
    def problem(self, pair: AppRepository) -> str:
        return pair.last_error

    @admin.display(description="circuit")
    def circuit(self, pair: AppRepository) -> SafeString | str:
        return components.circuit_words(pair.repository)

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        """With the buttons of every row for those who may press them; they lead back to this very list."""
        may_retry, may_resync = self.has_retry_permission(request), self.has_resync_permission(request)
        if not (may_retry or may_resync):
            return self.list_display
        back = request.get_full_path()

        @admin.display(description=components.ACTIONS)
        def resync_button(pair: AppRepository) -> SafeString:
            retry = components.retry_button(pair, back) if may_retry and pair.is_failing else ""
            resync = components.resync_link(pair, back) if may_resync else ""
            return format_html('<div class="row-buttons">{}{}</div>', retry, resync)

        return (*self.list_display, resync_button)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        operations = fragments.shown_operations(request, BulkOperation.objects.filter(ended_at=None))
        context = {"operations": operations, "here": request.get_full_path(), **(extra_context or {})}
        return super().changelist_view(request, context)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LiveChangeList

    def has_change_permission(self, request: HttpRequest, obj: AppRepository | None = None) -> bool:
        return False  # what can be changed has its own buttons

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Asks git before anything is saved, as the REST call does."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = WatchForm(posted(request), initial={"app": request.GET.get("app")})
        if request.method == "POST" and form.is_valid():
            watched = form.save(Actor.of_user(request.user))
            if watched is not None:
                state = "is watched now" if watched.created else "was watched already: everything is sent again"
                self.message_user(request, f"{watched.pair} {state}.", messages.SUCCESS)
                return HttpResponseRedirect(
                    reverse("admin:deliveries_app_apprepository_change", args=[watched.pair.pk])
                )
        return self.simple_form(request, form, "Watch a repository", "Watch")

    def page_context(self, request: HttpRequest, pair: AppRepository) -> dict[str, Any]:
        """Facts, progress and what is not delivered."""
        failures = pair.failures.filter(kind=FailureKind.FAILED)
        skipped = pair.failures.filter(kind=FailureKind.SKIPPED)
        may_see_repository = request.user.has_perm("repositories_app.view_repository")
        return {
            **fragments.of_pair(pair),
            "may_resync": self.has_resync_permission(request),
            "may_delete": self.has_delete_permission(request, pair),
            "failures": failures[:LISTED_FAILURES],
            "failure_count": failures.count(),
            "more_failures": max(0, failures.count() - LISTED_FAILURES),
            "left_out": words.left_out(pair.left_out),
            "skipped": skipped[:LISTED_FAILURES],
            "more_skipped": max(0, skipped.count() - LISTED_FAILURES),
            "notices": pair.notices.all()[:LISTED_FAILURES],
            "may_change": self.may(request, CHANGE_PERMISSION),
            "may_see_repository": may_see_repository,
            "may_retry": may_see_repository and self.has_retry_permission(request),
            "may_retry_sync": self.has_retry_permission(request),
            "hook_url": hook_url(pair),
            "hint": words.ROOT_HINTS[RootCause(pair.root_cause)] if pair.is_failing else "",
            "runs": [(run, words.number_left_out(run.left_out)) for run in pair.runs.all()[:LISTED_RUNS]],
        }

    def remove(self, actor: Actor, obj: AppRepository) -> None:
        services.unwatch(actor, obj)
