"""The job queue: what runs, waits and is scheduled, who works, and the buttons that stop one sync or pause all.

`Queue` has no table. Its change list is the page; nothing else of a model admin is there.
"""

from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.admin.base import ReadOnlyAdmin
from deliveries_app.admin.confirmation import next_url
from deliveries_app.models import AppRepository, Queue
from deliveries_app.reports import queue as queue_report
from deliveries_app.reports.queue import can_view
from deliveries_app.services import CONTROL_PERMISSION
from docora.text import format_seconds

PAUSE_WORDS = (
    "No repository is checked for changes and nothing is sent to any app, until somebody resumes syncing.",
    "Re-syncs, retries and pushes that come meanwhile are recorded, and wait. So do notices about repositories that fail. "
    "Everything else works as ever: apps, keys, watched repositories, test pings.",
    "On resume all of it goes on where it was; what the apps have acknowledged is not sent again.",
)


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin[Queue]):
    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return can_view(request.user)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return can_view(request.user)

    def get_urls(self) -> list[URLPattern]:
        pages = (
            ("", self.changelist_view, "changelist"),
            ("pause/", self.pause, "pause"),
            ("resume/", self.resume, "resume"),
        )
        wrap = self.admin_site.admin_view
        return [
            *(path(address, wrap(view), name=self.url_name(name)) for address, view, name in pages),
            path("<int:watch_pk>/stop/", wrap(self.stop), name=self.url_name("stop")),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": "Queue",
            "opts": self.opts,
            "view": queue_report.look(),
            "here": request.get_full_path(),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/deliveries_app/queue/change_list.html", context)

    def pause(self, request: HttpRequest) -> HttpResponse:
        """GET tells what it means; POST does it."""
        if not self.can(request, CONTROL_PERMISSION):
            raise PermissionDenied
        if request.method == "POST":
            pause = services.pause_syncing(Actor.of_user(request.user))
            self.message_user(request, f"All syncing is paused by {pause.paused_by}.", messages.SUCCESS)
            return HttpResponseRedirect(self._page())
        running = queue_report.counts(paused=False).running
        if running:
            syncs = "1 sync that runs now hands over" if running == 1 else f"{running:,} syncs that run now hand over"
            running_words = (f"{syncs} within seconds: what is under way settles, nothing new is sent.",)
        context = {
            **self.admin_site.each_context(request),
            "title": "Pause all syncing",
            "opts": self.opts,
            "words": (PAUSE_WORDS[0], *(running_words if running else ()), *PAUSE_WORDS[1:]),
            "verb": "Yes, pause all syncing",
            "back": self._page(),
        }
        return TemplateResponse(request, "admin/deliveries_app/queue/pause.html", context)

    def resume(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        resumed = services.resume_syncing(Actor.of_user(request.user))
        words = "Syncing goes on." if resumed else "Syncing was not paused any more."
        self.message_user(request, words, messages.SUCCESS)
        return HttpResponseRedirect(next_url(request, self._page()))

    def stop(self, request: HttpRequest, watch_pk: int) -> HttpResponse:
        """Of one that runs or waits; it can be asked for again at any time, so nobody is asked twice."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        actor = Actor.of_user(request.user)
        actor.require(CONTROL_PERMISSION)
        watch = AppRepository.objects.alive().select_related("app", "repository").filter(pk=watch_pk).first()
        if watch is None:
            self.message_user(request, "This repository is not watched any more.", messages.WARNING)
        elif services.stop_sync(actor, watch):
            rest = format_seconds(settings.RESCAN_INTERVAL_SECONDS)
            self.message_user(
                request, f"Stopped: {watch} rests until the next rescan, in {rest}, unless somebody asks for it earlier.",
                messages.SUCCESS,
            )  # fmt: skip
        else:
            self.message_user(request, f"Nothing was going on about {watch} any more.", messages.WARNING)
        return HttpResponseRedirect(self._page())

    def _page(self) -> str:
        return reverse(f"admin:{self.url_name('changelist')}")
