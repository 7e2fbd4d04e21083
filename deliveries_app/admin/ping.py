"""Test pings: send one to the app's endpoint, and explain the response."""

from dataclasses import asdict
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.models import App
from deliveries_app.permissions import Permission
from deliveries_app.reports import preflight
from deliveries_app.services import NotFound, pinging

_SESSION_KEY = "docora_last_ping"


class PingAdmin(DocoraAdmin[App]):
    """POST sends a ping and redirects to the page that shows the result, so that a refresh sends nothing.

    On a confirmation page, htmx sends the POST, and the response replaces the app's line.
    """

    def get_urls(self) -> list[URLPattern]:
        return [self.object_page("ping", self.ping, Permission.CHANGE_APPS), *super().get_urls()]

    def has_ping_permission(self, request: HttpRequest) -> bool:
        return self.can(request, Permission.CHANGE_APPS)

    def ping(self, request: HttpRequest, app: App) -> HttpResponse:
        if request.method == "POST":
            new_key = request.POST.get("key") == "new" and app.is_rotating_key
            try:
                ping = pinging.send_ping(Actor.of_request(request), app, new_key=new_key)
                if request.htmx:  # type: ignore[attr-defined]  # of `HtmxMiddleware`
                    app.refresh_from_db()
                    context = {"endpoint": preflight.after_ping(app), "ping": ping, "can_ping": True}
                    return render(request, "docora/preflight.html#pinged", context)
            except NotFound:
                message = f"{app} is being deleted."
                return self.redirect_with_message(request, self.list_url, message, messages.WARNING)
            request.session[_SESSION_KEY] = {"app": app.pk, "at": timezone.now().isoformat(), **asdict(ping)}
            return HttpResponseRedirect(reverse(f"admin:{self.url_name('ping')}", args=[app.pk]))
        last: dict[str, Any] = request.session.get(_SESSION_KEY) or {}
        shown = last | {"at": parse_datetime(last["at"])} if last.get("app") == app.pk else None
        context = {"original": app, "app": app, "ping": shown, "back": self.page_of(app)}
        return self.render_page(request, "admin/deliveries_app/app/ping.html", "Send test ping", **context)
