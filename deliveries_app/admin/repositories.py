"""Git repositories, whoever watches them. Here and not in `repositories_app`, because its action needs the watches."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import URLPattern
from django.utils.safestring import SafeString

from deliveries_app.actors import RETRY_PERMISSION, Actor
from deliveries_app.admin import widgets
from deliveries_app.admin.actions import ResyncAdmin
from deliveries_app.admin.confirmation import next_url
from deliveries_app.models import AppRepository
from deliveries_app.progress import context as progress_context
from deliveries_app.reports.help_texts import GIT_HINTS
from deliveries_app.services.control import reset_circuit
from repositories_app.models import Repository


@admin.register(Repository)
class RepositoryAdmin(ResyncAdmin[Repository]):
    list_display = ("full_name", "canonical_url", "watchers", "is_private", "consecutive_failures", "circuit")
    list_filter = ("is_private", widgets.CircuitFilter)
    search_fields = ("owner", "name", "repository_id", "canonical_url")
    actions = ("force_resync", "reset_circuits")
    page_template = "admin/repositories_app/repository/change_form.html"
    watch_field = "repository"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Repository]:
        alive = Q(watches__ended_at=None, watches__app__ended_at=None)
        return super().get_queryset(request).annotate(watcher_count=Count("watches", filter=alive))

    @admin.action(
        permissions=["resync"],
        description="Force re-sync for every app",
        description_plural="Force re-sync for every app",
    )
    def force_resync(self, request: HttpRequest, queryset: QuerySet[Repository]) -> HttpResponse:
        return self.ask_resync(request, queryset)

    @admin.action(permissions=["retry"], description="Reset circuit", description_plural="Reset circuit")
    def reset_circuits(self, request: HttpRequest, queryset: QuerySet[Repository]) -> None:
        """At once: it asks the git hosts once more, and nothing is lost by it."""
        actor, selected = Actor.of_user(request.user), list(queryset.order_by("pk"))
        for repository in selected:
            reset_circuit(actor, repository)
        words = f"{len(selected):,} circuits are" if len(selected) > 1 else "The circuit is"
        self.message_user(request, f"{words} reset: every app's watch is tried at once.", messages.SUCCESS)

    def reset_one(self, request: HttpRequest, repository: Repository) -> HttpResponse:
        """The button on the pages of the repository and of its watches."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        woken = reset_circuit(Actor.of_user(request.user), repository)
        watches = "1 watch is" if woken == 1 else f"{woken:,} watches are"
        self.message_user(request, f"The circuit is reset: {watches} tried at once.", messages.SUCCESS)
        return HttpResponseRedirect(next_url(request, self.page_of(repository)))

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.can(request, RETRY_PERMISSION)

    def get_urls(self) -> list[URLPattern]:
        return [self.object_page("reset-circuit", self.reset_one, RETRY_PERMISSION), *super().get_urls()]

    @admin.display(description="repository", ordering="owner")
    def full_name(self, repository: Repository) -> str:
        return str(repository)

    @admin.display(description="watched by", ordering="watcher_count")
    def watchers(self, repository: Repository) -> int:
        return int(repository.watcher_count)  # type: ignore[attr-defined]

    @admin.display(description="circuit")
    def circuit(self, repository: Repository) -> SafeString | str:
        return widgets.circuit_words(repository)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # it comes with the first watch

    def has_change_permission(self, request: HttpRequest, obj: Repository | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Repository | None = None) -> bool:
        return False  # it goes with the last watch

    def page_context(self, request: HttpRequest, repository: Repository) -> dict[str, Any]:
        """Facts, and who watches it."""
        watches = AppRepository.objects.alive().filter(repository=repository).select_related("app", "repository")[:200]
        return {
            "repository": repository,
            "snapshot": repository.snapshots.first(),
            "watches": watches,
            "live_ids": progress_context.live_ids(watches),
            "may_resync": self.has_resync_permission(request),
            "may_retry": self.has_retry_permission(request),
            "may_retry_sync": request.user.has_perms(["deliveries_app.view_apprepository", RETRY_PERMISSION]),
            "hint": GIT_HINTS.get(repository.last_error_cause, ""),
        }
