"""Client apps: the list, and the page from which one app is operated."""

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import transaction
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache

from deliveries_app import fragments, services
from deliveries_app.actors import Actor
from deliveries_app.admin.forms import AppForm, OnboardForm
from deliveries_app.admin.resync import ResyncAdmin
from deliveries_app.admin.watches import simple_form
from deliveries_app.models import App, AppRepository, BulkOperation, Status
from docora.crypto import decrypt, encrypt
from docora.templatetags.docora import badge

PER_PAGE = 50
_SECRETS = "docora_new_app_secrets"


@admin.register(App)
class AppAdmin(ResyncAdmin[App]):
    form = AppForm
    list_display = ("name", "app_id", "repositories", "failing", "state", "base_url")
    list_filter = ("paused",)
    search_fields = ("name", "app_id", "base_url", "email")
    actions = ("resync_all_for_app",)
    change_form_template = "admin/deliveries_app/app/change_form.html"
    pair_field = "app"

    def get_queryset(self, request: HttpRequest) -> QuerySet[App]:
        alive = Q(watches__ended_at=None)
        return (
            super()
            .get_queryset(request)
            .filter(ended_at=None)
            .annotate(
                watch_count=Count("watches", filter=alive),
                failed_count=Count("watches", filter=alive & Q(watches__status=Status.FAILED)),
            )
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("deliveries_app.onboard_app")

    def app_of(self, queryset: QuerySet[App]) -> App | None:
        apps = list(queryset[:2])
        return apps[0] if len(apps) == 1 else None

    @admin.action(permissions=["resync"], description="Re-sync all for app", description_plural="Re-sync all for app")
    def resync_all_for_app(self, request: HttpRequest, queryset: QuerySet[App]) -> HttpResponse:
        return self.ask(request, queryset)

    @admin.display(ordering="watch_count")
    def repositories(self, app: App) -> int:
        return int(app.watch_count)  # type: ignore[attr-defined]

    @admin.display(ordering="failed_count")
    def failing(self, app: App) -> int:
        return int(app.failed_count)  # type: ignore[attr-defined]

    @admin.display(description="state", ordering="paused")
    def state(self, app: App) -> SafeString | str:
        return badge("paused", "paused") if app.paused else ""

    def get_urls(self) -> list[URLPattern]:
        page = path(
            "secrets/", self.admin_site.admin_view(never_cache(self.show_secrets)), name=self._url_name("secrets")
        )
        return [page, *super().get_urls()]

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Registers an app, then leads to the page that shows its secrets once."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = OnboardForm(request.POST or None)
        if request.method == "POST" and form.is_valid():
            made = form.save(Actor.of_user(request.user))
            if made is not None:
                # For one GET, encrypted: a page in answer to this POST would be sent again by a refresh.
                request.session[_SECRETS] = [made.app.pk, encrypt(made.token), encrypt(made.client_auth_key)]
                return HttpResponseRedirect(reverse(f"admin:{self._url_name('secrets')}"))
        return simple_form(self, request, form, "Add app", "Register the app")

    def show_secrets(self, request: HttpRequest) -> HttpResponse:
        """The new app's token and key, once."""
        kept = request.session.pop(_SECRETS, None)
        app = App.objects.filter(pk=kept[0]).first() if kept else None
        if kept is None or app is None:
            self.message_user(request, "The secrets of a new app are shown once, and were shown.", messages.WARNING)
            return HttpResponseRedirect(reverse(f"admin:{self._url_name('changelist')}"))
        context = {
            **self.admin_site.each_context(request),
            "title": f"{app.name} is registered",
            "opts": self.opts,
            "app": app,
            "token": decrypt(kept[1]),
            "client_auth_key": decrypt(kept[2]),
        }
        return TemplateResponse(request, "admin/deliveries_app/app/secrets.html", context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """The app page: what runs and its repositories stand outside the form of the settings."""
        app = self.get_object(request, object_id)
        context = self._cockpit(request, app) if app is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _cockpit(self, request: HttpRequest, app: App) -> dict[str, Any]:
        watches = AppRepository.objects.alive().filter(app=app).select_related("app", "repository")
        page = Paginator(watches.order_by("repository__owner", "repository__name", "pk"), PER_PAGE).get_page(
            request.GET.get("p")
        )
        touching = BulkOperation.objects.filter(Q(app=app) | Q(runs__pair__app=app))
        return {
            "title": app.name,
            "subtitle": None,
            "app": app,
            "page": page,
            "operations": fragments.shown_operations(request, touching),
            "may_resync": self.has_resync_permission(request),
            "live_ids": fragments.live_ids(list(page.object_list)),
            "here": request.get_full_path(),
        }

    def save_model(self, request: HttpRequest, obj: App, form: Any, change: bool) -> None:
        """Only what was changed on the page: the workers write the other columns. Resuming forgets why it was paused
        and how long the endpoint was to rest."""
        written = set(form.changed_data)
        if "paused" in written and not obj.paused:
            obj.paused_reason, obj.not_before, obj.down_count = "", None, 0
            written |= {"paused_reason", "not_before", "down_count"}
            transaction.on_commit(services.enqueue_due, robust=True)
        obj.save(update_fields={*written, "updated_at"})

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Said in one line each: collecting a million deliveries to list them would help nobody."""
        return (
            [f"{app}: nothing more is sent, its watches and delivery records are removed" for app in objs],
            {
                "apps": len(objs),
                "watched repositories": AppRepository.objects.alive().filter(app__in=[app.pk for app in objs]).count(),
            },
            set(),
            [],
        )

    def delete_model(self, request: HttpRequest, obj: App) -> None:
        services.delete_app(Actor.of_user(request.user), obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[App]) -> None:
        for app in queryset:
            services.delete_app(Actor.of_user(request.user), app)
