"""Git repositories and their watches. This is not in `repositories_app` because the actions need the watches."""

from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.views.decorators.http import require_POST

from deliveries_app.actors import Actor, can_view
from deliveries_app.admin import widgets
from deliveries_app.admin.actions import RESYNC, BulkAdmin
from deliveries_app.admin.base import ReadOnlyAdmin, column
from deliveries_app.admin.confirmation import confirmed_action, next_url
from deliveries_app.admin.filters import ChoiceFilter, CircuitFilter
from deliveries_app.admin.watches import cells_of
from deliveries_app.models import AppRepository
from deliveries_app.models.root_causes import of_git
from deliveries_app.permissions import Permission
from deliveries_app.progress.context import live_query
from deliveries_app.reports.help_texts import ROOT_HINTS
from deliveries_app.services.control import reset_circuits
from docora.text import counted
from repositories_app.models import Repository
from repositories_app.services import lock

LISTED_WATCHES = 50


class VisibilityFilter(ChoiceFilter):
    title = "visibility"
    parameters = ("visibility",)
    options = {"public": ("Public", Q(is_private=False)), "private": ("Private", Q(is_private=True))}


@admin.register(Repository)
class RepositoryAdmin(BulkAdmin[Repository], ReadOnlyAdmin[Repository]):
    """Rows cannot be edited: the first watch of a repository adds it, and removing the last watch removes it."""

    list_display = ("full_name", "canonical_url", "watchers", "visibility", "consecutive_failures", "circuit")
    list_filter = (VisibilityFilter, CircuitFilter)
    search_fields = ("owner", "name", "repository_id", "canonical_url")
    actions = ("force_resync", "reset_circuits")
    page_template = "admin/repositories_app/repository/change_form.html"
    watch_field = "repository"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Repository]:
        return (
            super().get_queryset(request).annotate(watcher_count=AppRepository.objects.alive().count_by("repository"))
        )

    force_resync = confirmed_action(RESYNC.slug, "resync", "Force re-sync for every app", "Force re-sync for every app")

    @admin.action(permissions=["retry"], description="Reset circuit", description_plural="Reset circuit")
    def reset_circuits(self, request: HttpRequest, queryset: QuerySet[Repository]) -> None:
        """Reset without confirmation: this only makes Docora contact the git hosts again."""
        selected = list(queryset.exclude(consecutive_failures=0, circuit_open_until=None).order_by("pk"))
        if not selected:
            self.message_user(request, "The selection has no circuits to reset.", messages.WARNING)
            return
        reset_circuits(Actor.of_request(request), selected)
        circuits = f"{len(selected):,} circuits" if len(selected) > 1 else "Circuit"
        self.message_user(request, f"{circuits} reset. Retry queued for all affected repositories.")

    def reset_one(self, request: HttpRequest, repository: Repository) -> HttpResponse:
        """Reset one circuit, from the page of the repository or of one of its watches."""
        page = next_url(request, self.page_of(repository))
        with transaction.atomic():  # a second click finds it closed
            locked = lock(repository.pk)
            if locked is None or not (locked.consecutive_failures or locked.circuit_open_until):
                return self.redirect_with_warning(request, page, "The circuit is already closed.")
            number = reset_circuits(Actor.of_request(request), [locked])
        queued = f" Retry queued for {counted(number, 'app')}." if number else ""
        return self.redirect_with_message(request, page, f"Circuit reset.{queued}")

    def get_urls(self) -> list[URLPattern]:
        page = self.object_page("reset-circuit", require_POST(self.reset_one), Permission.RETRY)
        return [page, *super().get_urls()]

    full_name = column("repository", lambda repository: str(repository), ordering="owner")
    watchers = column("watched by", lambda repository: int(repository.watcher_count), ordering="watcher_count")
    visibility = column(
        "visibility", lambda repository: "Private" if repository.is_private else "Public", ordering="is_private"
    )
    circuit = column("circuit", widgets.circuit_text)

    def page_context(self, request: HttpRequest, repository: Repository) -> dict[str, Any]:
        """Return the details, and the watches if the user can view those."""
        can_view_watches = can_view(request.user, AppRepository)
        rows = AppRepository.objects.for_pages().filter(repository=repository)
        watches = rows[:LISTED_WATCHES] if can_view_watches else rows.none()
        cause = repository.last_error_cause
        return {
            "repository": repository,
            "snapshot": repository.snapshots.first(),
            "can_view_watches": can_view_watches,
            "rows": [cells_of(request.user, watch, request.get_full_path()) for watch in watches],
            "more_watches": self.watchers(repository) > LISTED_WATCHES,
            "live_query": live_query(watches),
            "hint": ROOT_HINTS[of_git(cause)].beside_error(request.user) if cause else "",
        }
