"""Git repositories, whoever watches them. Here and not in `repositories_app`, because its action needs the watches."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString

from deliveries_app import fragments
from deliveries_app.admin import components
from deliveries_app.admin.resync import ResyncAdmin
from deliveries_app.models import AppRepository, AppRepositoryQuerySet
from repositories_app.models import Repository


@admin.register(Repository)
class RepositoryAdmin(ResyncAdmin[Repository]):
    list_display = ("full_name", "canonical_url", "watchers", "is_private", "consecutive_failures", "circuit")
    list_filter = ("is_private",)
    search_fields = ("owner", "name", "repository_id", "canonical_url")
    list_per_page = 50
    show_full_result_count = False
    actions = ("force_resync",)
    change_form_template = "admin/repositories_app/repository/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Repository]:
        alive = Q(watches__ended_at=None, watches__app__ended_at=None)
        return super().get_queryset(request).annotate(watcher_count=Count("watches", filter=alive))

    def pairs_of(self, queryset: QuerySet[Repository]) -> AppRepositoryQuerySet:
        return AppRepository.objects.filter(repository__in=queryset.order_by().values("pk"))

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

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Facts, and who watches it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        repository = self.get_object(request, object_id)
        if repository is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        watches = AppRepository.objects.alive().filter(repository=repository).select_related("app", "repository")[:200]
        context = {
            **self.admin_site.each_context(request),
            "title": str(repository),
            "opts": self.opts,
            "original": repository,
            "repository": repository,
            "snapshot": repository.snapshots.first(),
            "watches": watches,
            "live_ids": fragments.live_ids(watches),
            "may_resync": self.has_resync_permission(request),
            "here": request.get_full_path(),
        }
        return TemplateResponse(request, self.change_form_template or [], context)
