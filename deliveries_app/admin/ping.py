"""Test pings: send one to the app's endpoint, and explain the response."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from deliveries_app.actors import Actor
from deliveries_app.admin.base import DocoraAdmin
from deliveries_app.models import App
from deliveries_app.services import NotFound, pinging

_SESSION_KEY = "docora_last_ping"


class PingAdmin(DocoraAdmin[App]):
    """POST sends a ping and redirects to the page that shows the result, so that a refresh sends nothing."""

    def get_urls(self) -> list[URLPattern]:
        return [self.object_page("ping", self.ping, pinging.PERMISSION), *super().get_urls()]

    def has_ping_permission(self, request: HttpRequest) -> bool:
        return self.can(request, pinging.PERMISSION)

    def ping(self, request: HttpRequest, app: App) -> HttpResponse:
        if request.method == "POST":
            new_key = request.POST.get("key") == "new" and app.is_rotating_key
            try:
                ping = pinging.send_ping(Actor.of_request(request), app, new_key=new_key)
            except NotFound as error:
                self.message_user(request, f"{error}: it is being removed.", messages.WARNING)
                return HttpResponseRedirect(reverse(f"admin:{self.url_name('changelist')}"))
            request.session[_SESSION_KEY] = {"app": app.pk, "at": timezone.now().isoformat(), **_fields(ping)}
            return HttpResponseRedirect(reverse(f"admin:{self.url_name('ping')}", args=[app.pk]))
        last: dict[str, Any] = request.session.get(_SESSION_KEY) or {}
        context = {
            **self.admin_site.each_context(request),
            "title": "Test ping",
            "opts": self.opts,
            "original": app,
            "app": app,
            "ping": last | {"at": parse_datetime(last["at"])} if last.get("app") == app.pk else None,
            "back": self.page_of(app),
        }
        return TemplateResponse(request, "admin/deliveries_app/app/ping.html", context)


def _fields(ping: pinging.Ping) -> dict[str, Any]:
    """Return the fields to store in the session."""
    return {
        "delivered": ping.delivered,
        "message": ping.message,
        "hint": ping.hint,
        "status": ping.status,
        "seconds": ping.seconds,
        "body": ping.body,
        "new_key": ping.new_key,
    }
