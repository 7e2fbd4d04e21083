"""The page "Why was this file (not) sent?", and the form that leads to it from the app page."""

from urllib.parse import urlencode

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.views.decorators.http import require_GET

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.admin.deliveries import state_badge
from deliveries_app.models import App, AppRepository
from deliveries_app.permissions import Permission
from deliveries_app.reports import app_detail, attempts
from deliveries_app.reports.file_explanation import Explanation, explain

_BADGES = {
    "delivered": ("delivered", "Delivered"),
    "failed": ("failed", "Not delivered"),
    "waiting": ("in_doubt", "Not sent yet"),
    "in doubt": ("in_doubt", "Unconfirmed"),
    "cleared": ("cleared", "Cleared"),
    "left out": ("left out", "Excluded"),
    "absent": ("absent", "No such file"),
    "unknown": ("unknown", "Unknown"),
}
"""State → the badge's style and label."""


class ExplainFileAdmin(DocoraAdmin[AppRepository]):
    """The page that explains one path of a watch."""

    def get_urls(self) -> list[URLPattern]:
        return [self.object_page("why", require_GET(self.why), Permission.VIEW_WATCHES), *super().get_urls()]

    def why(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Explain `path`, or show the empty form. The path is not stripped: names may begin and end with spaces."""
        path = request.GET.get("path", "")
        explanation = explain(Actor.of_request(request), watch, path) if path else None
        context = {
            "original": watch,
            "watch": watch,
            "back": self.page_of(watch),
            "path": path,
            "explanation": explanation,
            "badge": _BADGES[explanation.decision.state] if explanation else None,
            "attempts": attempts.of_path(request.user, watch, _sent_path(explanation), explanation.row)
            if explanation
            else None,
            "can_resend": self.can(request, Permission.RESYNC),
            "here": request.get_full_path(),
            "row_badge": state_badge(explanation.row, watch) if explanation and explanation.row else None,
        }
        template = "admin/deliveries_app/apprepository/why.html"
        return self.render_page(request, template, "Why was this file (not) sent?", **context)


def _sent_path(explanation: Explanation) -> str:
    """Return the file's path at the client."""
    return explanation.row.path if explanation.row else explanation.found.sent_as or explanation.path


class FindWatchAdmin(DocoraAdmin[App]):
    """The form on the app page: find the watch that the user named, and redirect to its page."""

    def get_urls(self) -> list[URLPattern]:
        return [self.object_page("why", require_GET(self.why), Permission.VIEW_WATCHES), *super().get_urls()]

    def why(self, request: HttpRequest, app: App) -> HttpResponse:
        name = request.GET.get("repository", "").strip()
        found = _find_watches(app, name)
        if len(found) == 1:
            page = reverse("admin:deliveries_app_apprepository_why", args=[found[0].pk])
            return HttpResponseRedirect(f"{page}?{urlencode({'path': request.GET.get('path', '')})}")
        message = f"{app.name} doesn't watch a repository named “{name}”."
        if found:
            message = f"{app.name} watches several repositories named {name}. Enter the URL of one of them."
        return self.redirect_with_message(request, self.page_of(app), message, messages.WARNING)


def _find_watches(app: App, name: str) -> list[AppRepository]:
    """Return up to two watches with this URL as the app spelled it, else with this `owner/name` or canonical URL."""
    watches = app_detail.watches_of(app).order_by("pk")
    owner, _, last = name.rpartition("/")
    by_name = Q(repository__owner__iexact=owner, repository__name__iexact=last)
    by_url = Q(repository__canonical_url__iexact=name)
    return list(watches.filter(github_url=name)[:2]) or list(watches.filter(by_name | by_url)[:2])
