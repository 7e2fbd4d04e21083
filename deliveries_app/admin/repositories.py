"""Git repositories, whoever watches them. Here and not in `repositories_app`, because its action needs the watches."""

from typing import Any

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from deliveries_app import fragments
from deliveries_app.admin import components
from deliveries_app.admin.resync import ResyncAdmin
from deliveries_app.models import AppRepository
from repositories_app.models import Repository


@admin.register(Repository)
class RepositoryAdmin(ResyncAdmin[Repository]):
    list_display = ("full_name", "canonical_url", "watchers", "is_private", "consecutive_failures", "circuit")
    list_filter = ("is_private",)
    search_fields = ("owner", "name", "repository_id", "canonical_url")
    actions = ("force_resync",)
    page_template = "admin/repositories_app/repository/change_form.html"
    pair_field = "repository"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Repository]:
        alive = Q(watches__ended_at=None, watches__app__ended_at=None)
        return super().get_queryset(request).annotate(watcher_count=Count("watches", filter=alive))

    @admin.action(
        permissions=["resync"],
        description="Force re-sync for every app",
        description_plural="Force re-sync for every app",
    )
    def force_resync(self, request: HttpRequest, queryset: QuerySet[Repository]) -> HttpResponse:
        return self.ask(request, queryset)

    @admin.display(description="repository", ordering="owner")
    def full_name(self, repository: Repository) -> str:
        return str(repository)

    @admin.display(description="watched by", ordering="watcher_count")
    def watchers(self, repository: Repository) -> int:
        return int(repository.watcher_count)  # type: ignore[attr-defined]

    @admin.display(description="circuit")
    def circuit(self, repository: Repository) -> SafeString | str:
        return components.circuit_words(repository)

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
            "live_ids": fragments.live_ids(watches),
            "may_resync": self.has_resync_permission(request),
        }
