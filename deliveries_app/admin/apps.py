"""Client apps: the list, the page to operate one app, test pings, and the page with its settings."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_GET, require_POST

from deliveries_app import services
from deliveries_app.actors import Actor, can_view_operations
from deliveries_app.admin.actions import RESYNC, Scope
from deliveries_app.admin.app_health import AppHealthAdmin
from deliveries_app.admin.app_secrets import ONBOARDED, AppSecretsAdmin
from deliveries_app.admin.confirmation import confirmed_action, next_url
from deliveries_app.admin.filters import ChoiceFilter
from deliveries_app.admin.forms import QUOTA_FIELDS, AppForm, OnboardForm, WatchManyForm, help_texts_of, post_data
from deliveries_app.admin.removal import RemovalAdmin, RemovalLabels
from deliveries_app.models import App, AppRepository, HourlyTraffic
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import app_detail, endpoint_history, endpoints
from deliveries_app.services import pinging
from deliveries_app.services.onboarding import taken_name_warning, unreachable_reason
from deliveries_app.services.watching_many import LineStatus
from docora.sign_in.recency import require_recent
from docora.text import counted

TOKENS_SHOWN = 20
_LAST_PING = "docora_last_ping"  # in the session
_LINE_BADGES = {
    LineStatus.WATCHED: ("succeeded", "Watching now"),
    LineStatus.ALREADY_WATCHED: ("up_to_date", "Already watched"),
    LineStatus.REPEATED: ("superseded", "Listed twice"),
    LineStatus.FAILED: ("failed", "Not watched"),
    LineStatus.UNCHECKED: ("queued", "Not checked yet"),
}
"""Status of a line → the badge's style and label."""


class PausedFilter(ChoiceFilter):
    title = "status"
    parameters = ("paused__exact",)
    options = {"0": ("Not paused", Q(paused=False)), "1": ("Paused", Q(paused=True))}


@admin.register(App)
class AppAdmin(AppHealthAdmin, AppSecretsAdmin, RemovalAdmin[App]):
    form = AppForm
    add_label = "Register app"
    list_filter = (PausedFilter,)
    search_fields = ("name", "^app_id", "base_url", "email")
    actions = ("resync_all_for_app", "delete_selected")
    removal_labels = RemovalLabels("Delete", "Deleted", "app", "apps")
    preserve_filters = False  # the settings lead back to the app instead of the list, and each link would cost a lookup
    page_template = "admin/deliveries_app/app/operate.html"
    watch_field = "app"

    def get_queryset(self, request: HttpRequest) -> QuerySet[App]:
        apps = super().get_queryset(request).filter(ended_at=None)
        successful = HourlyTraffic.objects.filter(app=OuterRef("pk"), acknowledged_at__isnull=False).order_by("-hour")
        return apps.annotate(
            watch_count=AppRepository.objects.alive().count_by("app"),
            failed_count=AppRepository.objects.failing().count_by("app"),
            last_success=Subquery(successful.values("acknowledged_at")[:1]),
        )

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(Permission.REGISTER_APPS)

    def get_fields(self, request: HttpRequest, obj: App | None = None) -> Any:
        """Offer GitHub Apps only to users who can change them: the app can read everything that its GitHub App can."""
        fields = super().get_fields(request, obj)
        can_assign = request.user.has_perm(Permission.CHANGE_GITHUB_APPS)
        return fields if can_assign else [name for name in fields if name != "github_app"]

    def get_form(self, request: HttpRequest, obj: App | None = None, change: bool = False, **kwargs: Any) -> Any:
        if obj is not None and change:  # otherwise, Django only asks which fields there are
            kwargs["help_texts"] = help_texts_of(obj)
        return super().get_form(request, obj, change, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: App | None = None) -> Any:
        fields = self.get_fields(request, obj)
        general = [name for name in fields if name not in QUOTA_FIELDS]
        quotas = [name for name in fields if name in QUOTA_FIELDS]
        return [(None, {"fields": general}), ("Quotas", {"fields": quotas})]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "github_app":  # a plain select, without Django's links to pop-up windows
            return self.formfield_for_foreignkey(db_field, request, empty_label="None", **kwargs)
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def scope_of(self, request: HttpRequest, queryset: QuerySet[App]) -> Scope:
        apps = list(queryset[:2])
        return Scope(apps[0]) if len(apps) == 1 else Scope()

    resync_all_for_app = confirmed_action(RESYNC.slug, "resync", "Re-sync all for app", "Re-sync all for app")
    delete_selected = confirmed_action("remove", "delete", "Delete", "Delete selected apps")

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Register an app, check once that its URL is reachable, and redirect to its secrets."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = OnboardForm(post_data(request))
        if form.is_valid():
            new = form.register(Actor.of_request(request))
            if new is not None:
                self._warn_if_name_is_taken(request, new.app)
                self._warn_if_unreachable(request, new.app)
                return self.redirect_to_secrets(
                    request, ONBOARDED, new.app, token=new.token, client_auth_key=new.client_auth_key
                )
        return self.render_confirmation(request, None, self.add_label, "docora/simple_form.html", form=form)

    def _warn_if_name_is_taken(self, request: HttpRequest, app: App) -> None:
        if message := taken_name_warning(app):
            self.message_user(request, message, messages.WARNING)

    def _warn_if_unreachable(self, request: HttpRequest, app: App) -> None:
        if reason := unreachable_reason(app.base_url):
            advice = " Fix this, then send a test ping." if self.can(request, Permission.CHANGE_APPS) else ""
            message = f"{app.name} was saved. {reason}{advice}"
            self.message_user(request, message, messages.WARNING)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Render the page to operate the app. A POST goes to the settings form, which has its own URL."""
        if request.method == "POST":
            return self.settings_view(request, object_id)
        return super().change_view(request, object_id, form_url, extra_context)

    def settings_view(self, request: HttpRequest, object_id: str | int) -> HttpResponse:
        """Render Django's form for the app, with its tokens and the button to delete it."""
        app = self.get_object(request, str(object_id))
        context = _settings_context(app) if app is not None else {}
        name_before, url_before = (app.name, app.base_url) if app is not None else ("", "")
        response = self.changeform_view(request, str(object_id), "", context)
        if request.method == "POST" and response.status_code == 302:  # committed, or the app is being removed
            app = self.get_object(request, str(object_id))
            if app is None:
                return response
            if app.name != name_before:
                self._warn_if_name_is_taken(request, app)
            if app.base_url != url_before:
                return self._offer_resync(request, app, response)
        return response

    def response_post_save_change(self, request: HttpRequest, obj: App) -> HttpResponseRedirect:
        """Redirect to the app's page after "Save"."""
        return HttpResponseRedirect(self.page_of(obj))

    def set_paused(self, request: HttpRequest, app: App, *, paused: bool) -> HttpResponse:
        """Pause or resume the app. A pause needs no confirmation: nothing is lost, because resuming continues where it stopped."""
        if app.paused != paused or app.paused_reason:
            app.paused = paused
            services.change_app(Actor.of_request(request), app, ["paused"])
        message = f"{app} is paused. Nothing is sent to it until it is resumed." if paused else f"{app} is resumed."
        return self.redirect_with_message(request, next_url(request, self.page_of(app)), message)

    def watch_many(self, request: HttpRequest, app: App) -> HttpResponse:
        """Watch many repositories. The page shows the result of each line, and keeps the lines to submit again.

        The page is rendered in response to the POST. Posting again changes nothing, because the repositories are then
        watched.
        """
        form = WatchManyForm(post_data(request))
        results = form.save(Actor.of_request(request), app) if form.is_valid() else None
        context = {
            "app": app,
            "results": [(result, *_LINE_BADGES[result.status]) for result in results or ()],
            "token_is_gone": bool(results and form.cleaned_data["github_token"]),
            "left": sum(result.is_open for result in results or ()),
        }
        template = "admin/deliveries_app/app/watch_many.html"
        shown = form if results is None else form.again(results)
        title, button = f"Watch several repositories for {app}", "Watch several repositories"
        return self.render_confirmation(request, app, title, template, form=shown, button=button, **context)

    def request_check(self, request: HttpRequest, app: App) -> HttpResponse:
        """Request checks for differences of all the app's repositories, and redirect to them."""
        try:
            count = len(services.check_app(Actor.of_request(request), app))
        except services.NotCheckable as error:
            return self.redirect_with_warning(request, self.page_of(app), error)
        checks = f"{reverse('admin:deliveries_app_driftcheck_changelist')}?watch__app={app.pk}"
        message = f"Check of {counted(count, 'repository')} requested."
        return self.redirect_with_message(request, checks, message)

    def ping(self, request: HttpRequest, app: App) -> HttpResponse:
        """POST sends a test ping and redirects to the page that shows the result, so that a refresh sends nothing.

        On a confirmation page, htmx sends the POST, and the response replaces the app's line.
        """
        if request.method == "POST":
            new_key = request.POST.get("key") == "new" and app.is_rotating_key
            ping = pinging.send_ping(Actor.of_request(request), app, new_key=new_key)
            if request.htmx:  # type: ignore[attr-defined]  # of `HtmxMiddleware`
                pinged = self.get_object(request, str(app.pk))
                if pinged is None:  # deleted while the app was asked
                    return self.redirect_missing(request, str(app.pk))
                context = {"endpoint": endpoints.after_ping(pinged), "ping": ping}
                return render(request, "docora/preflight.html#pinged", context)
            sent = {"app": app.pk, "at": timezone.now().isoformat(), "both_keys": app.is_rotating_key}
            request.session[_LAST_PING] = sent | asdict(ping)
            return HttpResponseRedirect(self.url_of("ping", app))
        last: dict[str, Any] = request.session.get(_LAST_PING) or {}
        shown = last | {"at": parse_datetime(last["at"])} if last.get("app") == app.pk else None
        context = {"original": app, "app": app, "ping": shown, "back": self.page_of(app)}
        return self.render_page(request, "admin/deliveries_app/app/ping.html", "Send test ping", **context)

    def why(self, request: HttpRequest, app: App) -> HttpResponse:
        """Find the watch that the user named, and redirect to its page "Why was this file (not) sent?"."""
        name = request.GET.get("repository", "").strip()
        found = _find_watches(app, name)
        if len(found) == 1:
            page = reverse("admin:deliveries_app_apprepository_why", args=[found[0].pk])
            return HttpResponseRedirect(f"{page}?{urlencode({'path': request.GET.get('path', '')})}")
        message = f"{app.name} doesn't watch a repository named “{name}”."
        if found:
            message = f"{app.name} watches several repositories named {name}. Enter the URL of one of them."
        return self.redirect_with_warning(request, self.page_of(app), message)

    def get_urls(self) -> list[URLPattern]:
        settings = self.admin_site.admin_view(self.settings_view)
        return [
            path("<int:object_id>/settings/", settings, name=self.url_name("settings")),
            self.object_page("endpoint", require_GET(self.endpoint)),
            self.object_page("ping", self.ping, Permission.CHANGE_APPS),
            self.object_page("why", require_GET(self.why), Permission.VIEW_WATCHES),
            self.object_page("watch-many", self.watch_many, Permission.WATCH),
            self.object_page("check", require_POST(self.request_check), Permission.RESYNC),
            self.object_page("pause", require_POST(partial(self.set_paused, paused=True)), Permission.CHANGE_APPS),
            self.object_page("resume", require_POST(partial(self.set_paused, paused=False)), Permission.CHANGE_APPS),
            *super().get_urls(),
        ]

    def _offer_resync(self, request: HttpRequest, app: App, default: HttpResponse) -> HttpResponse:
        """After a new base URL, redirect users who can re-sync to the confirmation page for all repositories."""
        self._warn_if_unreachable(request, app)
        if not AppRepository.objects.alive().filter(app=app).exists():
            return default
        can_resync = self.has_resync_permission(request)
        advice = "Ask a user with the re-sync permission to re-sync all repositories."
        if can_resync:
            advice = "Re-sync all repositories now or later."
        self.message_user(request, f"The new endpoint may not have the files yet. {advice}", messages.WARNING)
        if not can_resync:
            return default
        query = urlencode({"ids": app.pk, "next": self.page_of(app)})
        return HttpResponseRedirect(f"{self.url_of(RESYNC.slug)}?{query}")

    def page_context(self, request: HttpRequest, app: App) -> dict[str, Any]:
        """Return the context of the page: the part that refreshes, the boxes of running operations, and the rest."""
        live = app_detail.live(request.user, app, request.GET)
        operations = live["operations_shown"]
        names = app_detail.repository_names(app, "", most=2) if live["can_view"] else []
        return {
            **live,
            "operations": [progress_context.of_operation(operation) for operation in operations],
            "only_name": names[0] if len(names) == 1 else "",
        }

    def endpoint(self, request: HttpRequest, app: App) -> HttpResponse:
        """Show the health of the endpoint, hour by hour."""
        period = request.GET.get("period", "")
        period = period if period in endpoint_history.PERIODS else "day"
        hours, names_operations = endpoint_history.PERIODS[period][1], can_view_operations(request.user)
        context = {
            "original": app,
            "app": app,
            "back": self.page_of(app),
            "health": endpoints.health(app),
            "history": endpoint_history.of_app(app, hours, names_operations=names_operations),
            "period": period,
            "periods": [(name, label) for name, (label, _) in endpoint_history.PERIODS.items()],
        }
        return self.render_page(
            request, "admin/deliveries_app/app/endpoint.html", f"Endpoint health of {app}", **context
        )

    def save_model(self, request: HttpRequest, obj: App, form: Any, change: bool) -> None:
        if {"base_url", "github_app"} & set(form.changed_data):  # where files are sent, and what can be read
            require_recent(request)
        services.change_app(Actor.of_request(request), obj, form.changed_data)
        obj.refresh_from_db(fields=["name"])  # for the message; the page may have shown an earlier name

    def remove(self, actor: Actor, rows: Sequence[App]) -> None:
        for app in rows:
            services.delete_app(actor, app)


def _settings_context(app: App) -> dict[str, Any]:
    now, tokens = timezone.now(), list(app.tokens.all()[:TOKENS_SHOWN])
    return {
        "app": app,
        "now": now,
        "tokens": tokens,
        "old_tokens": sum(token.expires_at is not None and token.expires_at > now for token in tokens),
    }


def _find_watches(app: App, name: str) -> list[AppRepository]:
    """Return up to two watches with this URL as the app spelled it, else with this `owner/name` or canonical URL."""
    watches = app_detail.watches_of(app).order_by("pk")
    owner, _, last = name.rpartition("/")
    by_name = Q(repository__owner__iexact=owner, repository__name__iexact=last)
    by_url = Q(repository__canonical_url__iexact=name)
    return list(watches.filter(github_url=name)[:2]) or list(watches.filter(by_name | by_url)[:2])
