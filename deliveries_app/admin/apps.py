"""Client apps: the list, and the page to operate one app."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.admin.actions import RESYNC
from deliveries_app.admin.app_secrets import ONBOARDED, AppSecretsAdmin
from deliveries_app.admin.drift import CheckAppAdmin
from deliveries_app.admin.file_explanation import FindWatchAdmin
from deliveries_app.admin.forms import AppForm, OnboardForm, post_data
from deliveries_app.admin.ping import PingAdmin
from deliveries_app.admin.removal import RemovalAdmin, RemovalLabels
from deliveries_app.models import App, AppRepository
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail
from deliveries_app.services import github_apps
from deliveries_app.services.onboarding import unreachable_reason
from docora.templatetags.docora import badge

TOKENS_SHOWN = 20


def _count_of_watches(**condition: Any) -> Coalesce:
    """Count an app's watches in a subquery. Unlike a join, it costs nothing in queries that do not need the count."""
    watches = AppRepository.objects.filter(app=OuterRef("pk"), ended_at=None, **condition)
    counted = watches.order_by().values("app").annotate(count=Count("pk"))
    return Coalesce(Subquery(counted.values("count")), 0)


@admin.register(App)
class AppAdmin(AppSecretsAdmin, PingAdmin, FindWatchAdmin, CheckAppAdmin, RemovalAdmin[App]):
    form = AppForm
    list_display = ("name", "state", "failing", "repositories", "base_url", "app_id")
    list_filter = ("paused",)
    search_fields = ("name", "^app_id", "base_url", "email")
    actions = ("resync_all_for_app", "delete_selected")
    removal_labels = RemovalLabels("Delete", "Deleted", "app", "apps")
    change_form_template = "admin/deliveries_app/app/change_form.html"
    watch_field = "app"
    app_actions_of = "app"

    def get_queryset(self, request: HttpRequest) -> QuerySet[App]:
        return (
            super()
            .get_queryset(request)
            .filter(ended_at=None)
            .annotate(watch_count=_count_of_watches(), failed_count=_count_of_watches(failing_since__isnull=False))
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("deliveries_app.onboard_app")

    def get_fields(self, request: HttpRequest, obj: App | None = None) -> Any:
        """Offer GitHub Apps only to users who can change them, because the app reads whatever the chosen one can."""
        fields = super().get_fields(request, obj)
        may_assign = request.user.has_perm(github_apps.CHANGE_PERMISSION)
        return fields if may_assign else [name for name in fields if name != "github_app"]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "github_app":  # a plain select, without Django's links to pop-up windows
            return self.formfield_for_foreignkey(db_field, request, empty_label="None", **kwargs)
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def app_of(self, queryset: QuerySet[App]) -> App | None:
        apps = list(queryset[:2])
        return apps[0] if len(apps) == 1 else None

    @admin.action(
        permissions=["resync"],
        description="Re-sync all for app",
        description_plural="Re-sync all for app",
    )
    def resync_all_for_app(self, request: HttpRequest, queryset: QuerySet[App]) -> HttpResponse:
        return self.redirect_to_confirmation(request, RESYNC)

    @admin.action(permissions=["delete"], description="Delete", description_plural="Delete selected apps")
    def delete_selected(self, request: HttpRequest, queryset: QuerySet[App]) -> HttpResponse:
        return self.remove_selected(request, queryset)

    @admin.display(ordering="watch_count")
    def repositories(self, app: App) -> int:
        return int(app.watch_count)  # type: ignore[attr-defined]

    @admin.display(ordering="failed_count")
    def failing(self, app: App) -> int:
        return int(app.failed_count)  # type: ignore[attr-defined]

    @admin.display(description="status", ordering="paused")
    def state(self, app: App) -> SafeString:
        if app.paused:
            return badge("paused", "Paused")
        if app.down_count:
            return badge("failed", "Endpoint down")
        return badge("on_hold", "Slowed down") if app.is_slowed_down else badge("succeeded", "Active")

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Register an app, check once that its URL is reachable, and redirect to its secrets."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = OnboardForm(post_data(request))
        if request.method == "POST" and form.is_valid():
            new = form.save(Actor.of_request(request))
            if new is not None:
                self._warn_if_unreachable(request, new.app)
                return self.redirect_to_secrets(
                    request, ONBOARDED, new.app, token=new.token, client_auth_key=new.client_auth_key
                )
        return self.simple_form(request, form, "Register app", "Register app")

    def _warn_if_unreachable(self, request: HttpRequest, app: App) -> None:
        if reason := unreachable_reason(app.base_url):
            message = f"{app.name} was saved. {reason} Fix this, then send a test ping."
            self.message_user(request, message, messages.WARNING)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Render the app page: running operations and repositories, above the settings form."""
        app = self.get_object(request, object_id)
        context = self._app_context(request, app) if app is not None else {}
        url_before = app.base_url if app is not None else ""
        response = super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})
        if request.method == "POST" and response.status_code == 302 and app is not None:  # saved and committed
            app.refresh_from_db()
            if app.base_url != url_before:
                return self._offer_resync(request, app, response)
        return response

    def _offer_resync(self, request: HttpRequest, app: App, default: HttpResponse) -> HttpResponse:
        """After a new base URL, redirect users who can re-sync to the confirmation page for all repositories."""
        self._warn_if_unreachable(request, app)
        if not AppRepository.objects.alive().filter(app=app).exists():
            return default
        if not self.has_resync_permission(request):
            message = (
                "The new endpoint has no files yet. Ask a user with the re-sync permission to re-sync all repositories."
            )
            self.message_user(request, message, messages.WARNING)
            return default
        message = "The new endpoint has no files yet. Re-sync all repositories now or later."
        self.message_user(request, message, messages.WARNING)
        query = urlencode({"ids": app.pk, "next": self.page_of(app)})
        return HttpResponseRedirect(f"{reverse(f'admin:{self.url_name("force_resync")}')}?{query}")

    def _app_context(self, request: HttpRequest, app: App) -> dict[str, Any]:
        now, tokens = timezone.now(), list(app.tokens.all()[:TOKENS_SHOWN])
        live = app_detail.live(request.user, app, request.GET)
        operations = live["operations_shown"]
        more = app_detail.unpolled_context(app) if live["can_view"] else {}
        return {
            "title": app.name,
            "show_save_and_add_another": False,
            "subtitle": None,
            **live,
            **more,
            "operations": [progress_context.of_operation(operation) for operation in operations],
            "recent": app_detail.recent_operations(request.user, app),
            "now": now,
            "tokens": tokens,
            "old_tokens": sum(token.expires_at is not None and token.expires_at > now for token in tokens),
            "can_rotate": self.has_rotate_permission(request),
            "can_ping": self.has_ping_permission(request),
            "can_delete": self.has_delete_permission(request, app),
            "can_view_runs": request.user.has_perm("deliveries_app.view_syncrun"),
        }

    def save_model(self, request: HttpRequest, obj: App, form: Any, change: bool) -> None:
        services.change_app(Actor.of_request(request), obj, form.changed_data)

    def remove(self, actor: Actor, obj: App) -> None:
        services.delete_app(actor, obj)
