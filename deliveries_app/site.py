"""The admin site: its name and its sections. People sign in on allauth's pages (`docora.sign_in`)."""

from functools import wraps
from typing import Any
from urllib.parse import urlsplit

from allauth.account.decorators import secure_admin_login
from django.apps import apps
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.views.autocomplete import AutocompleteJsonView
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.http import require_GET
from django_htmx.http import HttpResponseClientRedirect

from deliveries_app.audited_admin import AuditedAdmin
from deliveries_app.models import App
from deliveries_app.reports import overview
from deliveries_app.services import current_pause
from docora import __version__
from docora.apps import added_apps
from docora.sign_in.forms import PasswordChangeForm
from docora.web.redirects import own_url

SESSION_ENDED = "Your session had ended, so nothing was done. Sign in and try again."
SECTIONS: dict[str, list[str]] = {
    "Sync": [
        "deliveries_app.App",
        "deliveries_app.AppRepository",
        "deliveries_app.FailedSync",
    ],
    "Activity": [
        "deliveries_app.SyncRun",
        "deliveries_app.BulkOperation",
        "deliveries_app.DriftCheck",
        "deliveries_app.Delivery",
        "deliveries_app.Queue",
    ],
    "Diagnostics": ["repositories_app.Repository"],
    "Access": [
        "repositories_app.GitHubApp",
        settings.AUTH_USER_MODEL,
        "auth.Group",
        "deliveries_app.AuditEntry",
    ],
}


class SuggestionsView(AutocompleteJsonView):
    """Suggests rows while a user types. An app is suggested with its base URL, because several may have the same name."""

    def serialize_result(self, obj: Model, to_field_name: str) -> dict[str, str]:
        result: dict[str, str] = super().serialize_result(obj, to_field_name)
        return result | {"text": f"{obj.name} · {obj.base_url}"} if isinstance(obj, App) else result


class DocoraAdminSite(admin.AdminSite):
    site_header = "Docora"
    site_title = "Docora"
    index_title = "Overview"
    site_url = None  # there is no other site to view
    empty_value_display = "—"
    password_change_form = PasswordChangeForm

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """Add `sync_pause`, for the banner that signed-in users see on every page while syncing is paused."""
        return {
            **super().each_context(request),
            "docora_version": __version__,
            "local_sign_in": settings.LOCAL_SIGN_IN,
            "sync_pause": current_pause() if self.has_permission(request) else None,
        }

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        """Return Django's wrapper, except that a form sent after the session has ended says that nothing was done.

        After the sign-in, the user is on the form's page again. Django would go to the form's address, where many views
        accept only POST.
        """
        checked = super().admin_view(view, cacheable)

        @wraps(checked)
        def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            if view == self.autocomplete_view and not self.has_permission(request):
                raise PermissionDenied  # a script would follow a redirect to the sign-in page, which responds with 200 and no suggestions
            if request.method != "POST" or request.user.is_authenticated or request.path == reverse("admin:logout"):
                return checked(request, *args, **kwargs)
            messages.warning(request, SESSION_ENDED)
            sign_in = redirect_to_login(_page_of_form(request), reverse("admin:login"))
            # From a redirect, htmx would put the sign-in page into a part of this page.
            return HttpResponseClientRedirect(sign_in.url) if request.htmx else sign_in  # type: ignore[attr-defined]

        return answer

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Give the page the same title as the link to it."""
        return super().password_change(request, {"title": "Change password", **(extra_context or {})})

    def autocomplete_view(self, request: HttpRequest) -> HttpResponse:
        view: Any = SuggestionsView.as_view(admin_site=self)
        response: HttpResponse = view(request)
        return response

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        """Register models as Django does, but record changes to them in Docora's audit log instead of Django's.

        Leave out allauth's pages, with which administrators could add providers and edit second factors.
        """
        base = admin_class or admin.ModelAdmin
        if base.__module__.startswith("allauth."):
            return
        if not issubclass(base, AuditedAdmin):
            base = type(base.__name__, (AuditedAdmin, base), {"__module__": base.__module__, "__doc__": base.__doc__})
        super().register(model_or_iterable, base, **options)

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        """Group the models by task instead of by package. Leave out those of which the user can open no page."""
        if app_label is not None:
            return super().get_app_list(request, app_label)
        listed = [model for app in self._build_app_dict(request).values() for model in app["models"]]
        known = {model["model"]: model for model in listed if model["admin_url"] or model["add_url"]}
        sections = []
        for name, labels in SECTIONS.items():
            models = [known.pop(model) for label in labels if (model := apps.get_model(label)) in known]
            if models:
                url = models[0]["admin_url"] or models[0]["add_url"]
                sections.append(_section(name, name.lower(), url, models))
        for app in added_apps():
            models = [known[model] for model in app.get_models() if model in known]
            if models:
                url = reverse("admin:app_list", kwargs={"app_label": app.label}, current_app=self.name)
                by_name = sorted(models, key=lambda model: str(model["name"]).lower())
                sections.append(_section(app.verbose_name, app.label, url, by_name))
        return sections

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the overview above the list of models, to users who can view any part of it."""
        context = overview.of_user(request.user) if overview.can_view(request.user) else None
        return super().index(request, {"overview": context, **(extra_context or {})})

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Redirect to allauth's page, which also asks for a second factor. Let users without access sign out.

        Django's own form is never used: with it, a signed-in user could guess the passwords of others.
        """
        if request.user.is_authenticated and not self.has_permission(request):
            return render(request, "account/no_access.html", self.each_context(request), status=403)
        response: HttpResponse = secure_admin_login(require_GET(super().login))(request, extra_context)
        return response


def _page_of_form(request: HttpRequest) -> str:
    """Return the path and query of the page whose form was sent, or of the overview if the browser doesn't say."""
    page = own_url(request, request.headers.get("Referer", ""), reverse("admin:index"))
    return urlsplit(page)._replace(scheme="", netloc="").geturl()


def _section(name: object, label: str, url: str, models: list[Any]) -> dict[str, Any]:
    return {"name": name, "app_label": label, "app_url": url, "has_module_perms": True, "models": models}
