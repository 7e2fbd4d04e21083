"""Watched repositories: the list, and the page of one watch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_GET, require_POST

from deliveries_app import services
from deliveries_app.actors import Actor, can_view
from deliveries_app.admin import drift, widgets
from deliveries_app.admin.actions import RESYNC, RETRY
from deliveries_app.admin.base import column
from deliveries_app.admin.confirmation import confirmed_action, next_url
from deliveries_app.admin.deliveries import state_badge
from deliveries_app.admin.filters import AppFilter, CircuitFilter, StateFilter
from deliveries_app.admin.forms import WatchForm, initial_for_moved, post_data
from deliveries_app.admin.removal import RemovalAdmin, RemovalLabels
from deliveries_app.admin.watch_settings import WatchSettingsAdmin
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet, FailureKind, Outcome, Reason
from deliveries_app.models.watches import WATCH_ORDER
from deliveries_app.permissions import Permission
from deliveries_app.progress import context as progress_context
from deliveries_app.reports import attempts, failing_files, help_texts
from deliveries_app.reports.file_explanation import explain
from deliveries_app.reports.next_attempt import next_attempt_of, next_check_of
from deliveries_app.services.push_hooks import hook_url
from docora.templatetags.docora import ago, elapsed, files_of, status_with_detail
from docora.text import counted, format_seconds, visible
from docora.web.paginators import KeysFirstPaginator
from repositories_app.git.errors import moved_to

LISTED_RUNS = 10
LISTED_SKIPPED = 50
_CANCELLED = {
    Reason.RESYNC: "Re-sync cancelled.",
    Reason.RETRY: "Retry cancelled. Docora tries again in {wait}.",
}
_RESEND_CANCELLED = "Resend cancelled. Files that were not resent are sent in {wait}."

_FILE_BADGES = {
    "delivered": ("delivered", "Delivered"),
    "failed": ("failed", "Not delivered"),
    "waiting": ("in_doubt", "Not sent yet"),
    "in doubt": ("in_doubt", "Unconfirmed"),
    "cleared": ("cleared", "Cleared"),
    "left out": ("left out", "Excluded"),
    "absent": ("absent", "No such file"),
    "unknown": ("unknown", "Unknown"),
}
"""State of an explained file → the badge's style and label."""


class WatchCircuitFilter(CircuitFilter):
    options = {"open": ("Open", Q(repository__circuit_open_until__gt=Now()))}


class LiveChangeList(ChangeList):
    """Provide the query string that the page polls its active rows with."""

    @property
    def live_query(self) -> str:
        return progress_context.live_query(self.result_list)


@admin.register(AppRepository)
class AppRepositoryAdmin(WatchSettingsAdmin, RemovalAdmin[AppRepository]):
    # A watch's page does not lead back to the filtered list, so the lookup that each link would cost is not needed.
    preserve_filters = False
    list_class = LiveChangeList
    add_label = "Watch a repository"
    list_display = (
        "repository_name", "app_name", "status_badge", "problem", "synced", "files",
    )  # fmt: skip
    list_filter = (StateFilter, AppFilter, WatchCircuitFilter)
    search_fields = (
        "repository__owner", "repository__name", "app__name", "app__app_id", "repository__repository_id", "github_url",
    )  # fmt: skip
    search_help_text = "Owner, name, URL, app or ID"
    actions = ("force_resync", "retry", "pause", "resume", "delete_selected")
    removal_labels = RemovalLabels("Stop watching", "Stopped watching", "repository", "repositories")
    page_template = "admin/deliveries_app/apprepository/change_form.html"
    paginator = KeysFirstPaginator
    bulk_actions = (RESYNC, RETRY)

    def get_queryset(self, request: HttpRequest) -> AppRepositoryQuerySet:
        # An explicit order, so that Django adds it to the one that the user chooses.
        return AppRepository.objects.for_pages().order_by(*WATCH_ORDER)

    force_resync = confirmed_action(
        RESYNC.slug, "resync", "Force re-sync", "Force re-sync of the selected repositories"
    )
    delete_selected = confirmed_action("remove", "delete", "Stop watching", "Stop watching selected repositories")

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.can(request, Permission.CHANGE_WATCHES)

    @admin.action(permissions=["pause"], description="Pause", description_plural="Pause selected repositories")
    def pause(self, request: HttpRequest, queryset: QuerySet[AppRepository]) -> None:
        """Pause without confirmation: nothing is lost, because resuming continues where it stopped."""
        paused = services.pause_watches(Actor.of_request(request), self.watches_of(queryset))
        self.message_user(request, f"Paused {counted(len(paused), 'repository')}.")

    @admin.action(permissions=["pause"], description="Resume", description_plural="Resume selected repositories")
    def resume(self, request: HttpRequest, queryset: QuerySet[AppRepository]) -> None:
        resumed = services.resume_watches(Actor.of_request(request), self.watches_of(queryset))
        self.message_user(request, f"Resumed {counted(len(resumed), 'repository')}.")

    def pause_one(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        services.pause_watches(Actor.of_request(request), AppRepository.objects.filter(pk=watch.pk))
        message = f"{watch} is paused. Nothing is checked or sent until it is resumed."
        return self.redirect_with_message(request, next_url(request, self.page_of(watch)), message)

    def resume_one(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        services.resume_watches(Actor.of_request(request), AppRepository.objects.filter(pk=watch.pk))
        still = " Its app is still paused." if watch.app.paused else ""
        message = f"{watch} is resumed.{still}"
        return self.redirect_with_message(request, next_url(request, self.page_of(watch)), message)

    def retry_one(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Retry one watch without confirmation: a retry sends only unacknowledged files."""
        page = next_url(request, self.page_of(watch))
        try:
            services.retry_single(Actor.of_request(request), watch)
        except services.NotFailed:
            return self.redirect_with_warning(request, page, f"{watch} is no longer failing.")
        message = f"Retry queued for {watch}. Only unacknowledged files are sent.{widgets.wait_note(watch, 'retry')}"
        return self.redirect_with_message(request, page, message)

    def cancel_one(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        page = next_url(request, self.page_of(watch))
        # Only the request that the page showed: a second click must not cancel an earlier one.
        if not services.cancel_request(Actor.of_request(request), watch, request.POST.get("run", "")):
            return self.redirect_with_warning(request, page, "There is nothing to cancel.")
        run = watch.runs.filter(outcome=Outcome.CANCELLED).latest("ended_at", "pk")
        message = _RESEND_CANCELLED if run.is_resend else _CANCELLED[Reason(run.reason)]
        wait = format_seconds(settings.RESCAN_INTERVAL_SECONDS)
        return self.redirect_with_message(request, page, message.format(wait=wait))

    def request_check(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Request a check for differences, and redirect to it."""
        try:
            check = services.check_watch(Actor.of_request(request), watch)
        except services.NotCheckable as error:
            return self.redirect_with_warning(request, self.page_of(watch), error)
        return HttpResponseRedirect(reverse("admin:deliveries_app_driftcheck_change", args=[check.pk]))

    def resend_one(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Resend one file without confirmation. Its path is in the query string, because forms change line breaks."""
        page, path = next_url(request, self.page_of(watch)), request.GET.get("path", "")
        try:
            files = services.resend_files(Actor.of_request(request), watch, [path]).files
        except services.NotFound:  # no longer watched
            files = 0
        if not files:
            message = f"{watch.app.name} holds no such file, so there is nothing to resend: {visible(path)}"
            return self.redirect_with_warning(request, page, message)
        message = f"Resend queued for {visible(path)}.{widgets.wait_note(watch, 'resend')}"
        return self.redirect_with_message(request, page, message)

    def why(self, request: HttpRequest, watch: AppRepository) -> HttpResponse:
        """Explain `path`, or show the empty form. The path is not stripped: names may begin and end with spaces."""
        path = request.GET.get("path", "")
        context: dict[str, Any] = {
            "original": watch,
            "watch": watch,
            "back": self.page_of(watch),
            "path": path,
            "here": request.get_full_path(),
        }
        if path:
            explanation = explain(Actor.of_request(request), watch, path)
            context |= {
                "explanation": explanation,
                "badge": _FILE_BADGES[explanation.decision.state],
                "attempts": attempts.of_path(request.user, watch, explanation.sent_path, explanation.row),
                "row_badge": state_badge(explanation.row, watch) if explanation.row else None,
            }
        template = "admin/deliveries_app/apprepository/why.html"
        return self.render_page(request, template, "Why was this file (not) sent?", **context)

    def get_urls(self) -> list[URLPattern]:
        return [
            self.object_page("why", require_GET(self.why)),
            self.object_page("retry", require_POST(self.retry_one), Permission.RETRY),
            self.object_page("cancel", require_POST(self.cancel_one)),
            self.object_page("pause", require_POST(self.pause_one), Permission.CHANGE_WATCHES),
            self.object_page("resume", require_POST(self.resume_one), Permission.CHANGE_WATCHES),
            self.object_page("check", require_POST(self.request_check), Permission.RESYNC),
            self.object_page("resend", require_POST(self.resend_one), Permission.RESYNC),
            *super().get_urls(),
        ]

    repository_name = column("repository", lambda watch: str(watch.repository), ordering="repository__name")
    app_name = column("app", lambda watch: watch.app.name, ordering="app__name")
    status_badge = column(
        "status",
        lambda watch: format_html('<span id="live-{}" class="live">{}</span>', watch.pk, status_with_detail(watch)),
        ordering="state_detail",
    )
    """The cell that the list's poller replaces by id while the watch is active."""
    synced = column("last complete sync", lambda watch: cell("synced", watch), ordering="last_synced_at")
    files = column("files", lambda watch: cell("files", watch), ordering="tree_files")
    problem = column("error", lambda watch: cell("problem", watch), ordering="failing_since")
    """The last error, for how long the watch has been failing, and until when its circuit is open."""

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:
        """Add each row's buttons for users who can use them. They redirect back to this list."""
        if not can_act(request.user):
            return self.list_display
        back = request.get_full_path()

        @admin.display(description=widgets.ACTIONS)
        def row_buttons(watch: AppRepository) -> SafeString:
            return buttons(request.user, watch, back)

        return (*self.list_display, row_buttons)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        operations = progress_context.open_operations(request.user)
        context = {"operations": operations, "here": request.get_full_path(), **(extra_context or {})}
        return super().changelist_view(request, context)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return can_view(request.user, App) and super().has_add_permission(request)  # the form names the chosen app

    def has_change_permission(self, request: HttpRequest, obj: AppRepository | None = None) -> bool:
        return False  # each setting has its own page

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Before saving, check with git that the repository can be read, as the API does."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        template = "admin/deliveries_app/apprepository/add.html"
        if request.method == "GET" and not App.objects.filter(ended_at=None).exists():
            return self.render_confirmation(request, None, self.add_label, template)
        moved = self._moved(request)
        form = WatchForm(
            post_data(request), initial=initial_for_moved(moved) if moved else {"app": request.GET.get("app")}
        )
        if form.is_valid():
            watched = form.save(Actor.of_request(request))
            if watched is not None:
                watch = watched.watch
                message: SafeString | str = f"{watch.app} now watches {watch.repository}."
                if moved and watch != moved:
                    link = format_html('<a href="{}">{}</a>', self.page_of(moved), moved.repository)
                    message = format_html("{} Once it is up to date, stop watching {}.", message, link)
                return self.redirect_with_message(request, self.page_of(watch), message)
        return self.render_confirmation(request, None, self.add_label, template, form=form, moved=moved)

    def _moved(self, request: HttpRequest) -> AppRepository | None:
        """Return the watch `?moved=` whose settings the form takes over, if the user can view it and its repository moved."""
        watch = self.get_object(request, request.GET.get("moved", "")) if self.has_view_permission(request) else None
        return watch if watch and moved_to(watch.last_error) else None

    def page_context(self, request: HttpRequest, watch: AppRepository) -> dict[str, Any]:
        """Return the watch's details, its progress, and what is not delivered."""
        skipped = watch.failures.filter(kind=FailureKind.SKIPPED)
        next_check = next_check_of(watch)
        has_new_url = bool(moved_to(watch.last_error))
        return {
            **of_watch(watch),
            **drift.of_watch(watch),
            "failing_files": failing_files.of_watch(watch),
            "left_out": help_texts.left_out(watch.left_out),
            "skipped": skipped[:LISTED_SKIPPED],
            "more_skipped": max(0, skipped.count() - LISTED_SKIPPED),
            "notices": [
                (notice, next_attempt_of(watch, hold_until=notice.due_at))
                for notice in watch.notices.all()[:LISTED_SKIPPED]
            ],
            "next_check": next_check,
            "check_is_due": next_check is not None and next_check <= timezone.now(),
            "hook_url": hook_url(watch),
            "hint": help_texts.hint_of(watch.root_cause).beside_error(request.user)
            if watch.is_failing and not has_new_url
            else "",
            "new_url_form": f"{self.url_of('add')}?moved={watch.pk}"
            if has_new_url and self.has_add_permission(request)
            else "",
            "runs": [(run, help_texts.number_left_out(run.left_out)) for run in watch.runs.all()[:LISTED_RUNS]],
        }

    def watches_of(self, queryset: QuerySet[AppRepository]) -> AppRepositoryQuerySet:
        return cast(AppRepositoryQuerySet, queryset)

    def remove(self, actor: Actor, rows: Sequence[AppRepository]) -> None:
        services.unwatch_many(actor, rows)


def _problem(watch: AppRepository) -> SafeString | str:
    failing_for = elapsed(watch.failing_since) if watch.failing_since else ""
    return widgets.problem(watch.last_error, failing_for, widgets.circuit_text(watch.repository))


_CELLS: dict[str, Callable[[AppRepository], SafeString | str]] = {
    "problem": _problem,
    "synced": lambda watch: ago(watch.last_synced_at),
    "files": files_of,
}


def cell(name: str, watch: AppRepository, swap: str = "") -> SafeString:
    """Return one cell of a row. `swap` is `widgets.SWAP` for a refreshed cell. Phones hide an empty one."""
    content = _CELLS[name](watch)
    empty = "" if content else SafeString(" data-empty")
    return format_html('<span id="{}-{}"{}{}>{}</span>', name, watch.pk, empty, swap, content or "—")


def can_act(user: User | AnonymousUser) -> bool:
    """Return whether the user can use any of the buttons of a row."""
    return user.has_perm(Permission.RETRY) or user.has_perm(Permission.RESYNC)


def buttons(user: User | AnonymousUser, watch: AppRepository, back: str, swap: str = "") -> SafeString:
    """Return the buttons of a row that the user can use. They lead `back`."""
    retry = widgets.retry_button(watch, back) if watch.is_failing and user.has_perm(Permission.RETRY) else ""
    resync = widgets.resync_link(watch, back, str(watch), "Re-sync") if user.has_perm(Permission.RESYNC) else ""
    return format_html('<div id="buttons-{}" class="row-buttons"{}>{}{}</div>', watch.pk, swap, retry, resync)


def cells_of(user: User | AnonymousUser, watch: AppRepository, back: str) -> dict[str, Any]:
    """Return the watch and its cells, for a table of watched repositories outside of the list."""
    return {"watch": watch, "buttons": buttons(user, watch, back), **{name: cell(name, watch) for name in _CELLS}}


def refreshed_cells(user: User | AnonymousUser, watch: AppRepository, back: str) -> Iterator[SafeString]:
    """Yield the cells of a row that a sync changes, besides its status."""
    yield from (cell(name, watch, widgets.SWAP) for name in _CELLS)
    if can_act(user):
        yield buttons(user, watch, back, widgets.SWAP)


def of_watch(watch: AppRepository) -> dict[str, Any]:
    """Return the context of `docora/progress.html#watch_progress`."""
    return {**progress_context.of_watch(watch), "next_attempt": next_attempt_of(watch)}
