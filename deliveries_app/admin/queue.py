"""The queue page: running, waiting and scheduled syncs, the workers, and buttons to cancel one sync or pause all.

`Queue` has no table, so only the change list of the model admin is used.
"""

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path
from django.views.decorators.http import require_POST

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.admin.base import ReadOnlyAdmin
from deliveries_app.admin.confirmation import next_url
from deliveries_app.models import AppRepository, DriftCheck, Queue
from deliveries_app.monitoring.counts import count_watches
from deliveries_app.permissions import Permission
from deliveries_app.reports import queue as queue_report
from docora.text import counted, format_seconds

PAUSE_PARAGRAPHS = (
    "Until syncing is resumed, no repository is checked for changes and nothing is sent to any app.",
    "Re-syncs, retries, pushes and notifications about failing repositories are held until then. "
    "You can still manage apps, keys and watched repositories, and send test pings.",
    "When you resume, syncs continue where they stopped. Files already acknowledged are not sent again.",
)


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin[Queue]):
    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return queue_report.can_view(request.user)

    def get_urls(self) -> list[URLPattern]:
        pages = (
            ("", self.changelist_view, "changelist"),
            ("pause/", self.pause, "pause"),
            ("resume/", require_POST(self.resume), "resume"),
            ("<int:watch_pk>/cancel/", require_POST(self.cancel), "cancel"),
        )
        wrap = self.admin_site.admin_view
        return [path(address, wrap(view), name=self.url_name(name)) for address, view, name in pages]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {"view": queue_report.read_queue(), "here": request.get_full_path(), **(extra_context or {})}
        return self.render_page(request, "admin/deliveries_app/queue/change_list.html", "Queue", **context)

    def pause(self, request: HttpRequest) -> HttpResponse:
        """GET explains the effect; POST pauses."""
        if not self.can(request, Permission.CONTROL_QUEUE):
            raise PermissionDenied
        if request.method == "POST":
            pause = services.pause_syncing(Actor.of_request(request))
            return self.redirect_with_message(request, self.list_url, f"All syncing was paused by {pause.paused_by}.")
        running = count_watches().leased
        paragraphs = list(PAUSE_PARAGRAPHS)
        if running:
            syncs = counted(running, "running sync stops", "running syncs stop")
            paragraphs.insert(1, f"{syncs} within seconds. In-flight requests finish; no new ones are sent.")
        return self.render_confirmation(request, None, "Pause all syncing", paragraphs=paragraphs, back=self.list_url)

    def resume(self, request: HttpRequest) -> HttpResponse:
        resumed = services.resume_syncing(Actor.of_request(request))
        message = "Syncing was resumed." if resumed else "Syncing was not paused."
        return self.redirect_with_message(request, next_url(request, self.list_url), message)

    def cancel(self, request: HttpRequest, watch_pk: int) -> HttpResponse:
        """Cancel a running or waiting sync without confirmation: a new sync can be requested at any time."""
        actor = Actor.of_request(request)
        actor.require(Permission.CONTROL_QUEUE)
        watch = AppRepository.objects.alive().select_related("app", "repository").filter(pk=watch_pk).first()
        if watch is not None and services.cancel_sync(actor, watch):
            interval = format_seconds(settings.RESCAN_INTERVAL_SECONDS)
            next_step = f"syncs again in {interval}, or sooner if requested"
            if not AppRepository.objects.unpaused().filter(pk=watch.pk).exists():
                next_step = "is not fully imported yet" if watch.arriving else "is paused"
            has_check = DriftCheck.objects.open().filter(watch=watch).exists()
            message = f"Sync cancelled. {watch} {next_step}."
            message += " Its check for differences stays queued." if has_check else ""
            return self.redirect_with_message(request, self.list_url, message)
        message = f"There is no sync of {watch} to cancel." if watch else "This repository is no longer watched."
        return self.redirect_with_warning(request, self.list_url, message)
