"""Checks for differences: the list, and the page of one check."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST

from deliveries_app import services
from deliveries_app.actors import Actor, can_view
from deliveries_app.admin import widgets
from deliveries_app.admin.base import ReadOnlyAdmin, column
from deliveries_app.admin.filters import ChoiceFilter, WatchAppFilter, WatchFilter
from deliveries_app.models import AppRepository, DriftCheck, DriftKind, DriftState, SyncRun
from deliveries_app.permissions import Permission
from deliveries_app.progress.context import joined
from deliveries_app.reports import drift
from deliveries_app.services.drift import ALREADY_SENT
from docora.templatetags.docora import ago, badge
from docora.text import counted
from docora.web.paginators import BoundedPaginator

FILES_PER_PAGE = 100


class CheckStateFilter(ChoiceFilter):
    title = "result"
    parameters = ("state",)
    options = {state.value: (str(state.label), Q(state=state)) for state in DriftState}


class CheckList(ChangeList):
    """Read the watches of open checks `with_state`, and provide the ids of the rows that the page polls."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = drift.with_watches(self.result_list)

    @property
    def live_ids(self) -> str:
        return joined(check.pk for check in self.result_list if check.is_open)


@admin.register(DriftCheck)
class DriftCheckAdmin(ReadOnlyAdmin[DriftCheck]):
    list_class = CheckList
    list_display = ("repository_name", "app_name", "result", "differences", "requested", "requester")
    list_filter = (WatchAppFilter, WatchFilter, CheckStateFilter)
    sortable_by = ()
    paginator = BoundedPaginator
    empty_text = (
        "No checks for differences yet. If an app's settings allow them, the pages of the app and of its repositories have a "
        "button that starts one."
    )
    page_template = "admin/deliveries_app/driftcheck/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[DriftCheck]:
        return DriftCheck.objects.for_list()

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return can_view(request.user, AppRepository)

    def get_urls(self) -> list[URLPattern]:
        return [
            self.object_page("send", self.send, Permission.RESYNC),
            self.object_page("cancel", require_POST(self.cancel), Permission.RESYNC),
            *super().get_urls(),
        ]

    repository_name = column("repository", lambda check: str(check.watch.repository))
    app_name = column("app", lambda check: check.watch.app.name)
    result = column(
        "result", lambda check: format_html('<span id="drift-state-{}">{}</span>', check.pk, state_badge(check))
    )
    differences = column(
        "differences",
        lambda check: format_html('<span id="drift-summary-{}">{}</span>', check.pk, drift.summary(check)),
    )
    requested = column("requested", lambda check: ago(check.created_at))
    requester = column("by", lambda check: check.requested_by)

    def page_context(self, request: HttpRequest, check: DriftCheck) -> dict[str, Any]:
        """Return the context of the result. The page polls it until the check has ended."""
        (check,) = drift.with_watches([check])
        kind = request.GET.get("kind", "")
        kind = kind if kind in DriftKind.values else ""
        files = check.files.filter(kind=kind) if kind else check.files.all()
        counts = {DriftKind.MISSING: check.missing, DriftKind.DIFFERENT: check.different, DriftKind.EXTRA: check.extra}
        run = SyncRun.objects.filter(run_id=check.sent_run).first() if check.sent_run else None
        return {
            "check": check,
            "watch": check.watch,
            "style": drift.STYLES.get(check.state, ""),
            "badge": state_badge(check),
            "summary": drift.summary(check),
            "send_label": send_label(check),
            "run": run if request.user.has_perm(Permission.VIEW_RUNS) else None,
            "kind": kind,
            "kinds": [(name.value, name.label.lower(), count) for name, count in counts.items() if count],
            "page": Paginator(files, FILES_PER_PAGE).get_page(request.GET.get("p")),
        }

    def cancel(self, request: HttpRequest, check: DriftCheck) -> HttpResponse:
        page = self.page_of(check)
        if not services.cancel_check(Actor.of_request(request), check):
            return self.redirect_with_warning(request, page, "The check had already ended.")
        return self.redirect_with_message(request, page, "Check cancelled.")

    def send(self, request: HttpRequest, check: DriftCheck) -> HttpResponse:
        """GET says what will be sent; POST sends it."""
        page = self.page_of(check)
        if not check.can_send:
            message = ALREADY_SENT if check.sent_at else "There is nothing to send."
            return self.redirect_with_warning(request, page, message)
        if request.method != "POST":
            return self.render_confirmation(request, check, send_label(check), paragraphs=list(_consequences(check)))
        try:
            sent = services.send_differences(Actor.of_request(request), check)
        except (services.NothingToSend, services.NotFound) as error:
            return self.redirect_with_warning(request, page, error)
        parts = [f"Sending {counted(sent.files, 'file')}"] if sent.files else []
        parts += [f"deleting {counted(sent.deletes, 'extra file')}"] if sent.deletes else []
        message = f"{' and '.join(parts).capitalize()}."
        if sent.settled:
            message += f" Skipped {counted(sent.settled, 'file')} that changed after the check."
        message += widgets.wait_note(AppRepository.objects.with_state().for_list().get(pk=check.watch_id), "sync")
        return self.redirect_with_message(request, page, message)


def send_label(check: DriftCheck) -> str:
    """Return the label of the button that sends or deletes the listed files."""
    if check.extra == check.differences:
        return "Delete this extra file" if check.listed == 1 else f"Delete these {check.listed:,} extra files"
    return "Fix this difference" if check.listed == 1 else f"Fix {check.listed:,} differences"


def _consequences(check: DriftCheck) -> Iterator[str]:
    kinds = Counter(check.files.values_list("kind", flat=True))
    app, files = check.watch.app.name, kinds[DriftKind.MISSING] + kinds[DriftKind.DIFFERENT]
    if files:
        yield f"{counted(files, 'file')} of {check.watch.repository} will be sent to {app} again."
    if extra := kinds[DriftKind.EXTRA]:
        surplus = counted(extra, "file that is", "files that are")
        yield f"{app} will get a delete for {surplus} not in the repository."
        yield "Files whose path differs from one of these only in case, or is above or below it, are sent again too."
    yield "No other file that the app has acknowledged is sent again. Files that have been sent since the check are left as they are."
    if check.differences > check.listed:
        yield (
            f"The check found {check.differences:,} differences and listed the first {check.listed:,}. Only these are sent. "
            "Check again afterwards, or re-sync the repository."
        )


def state_badge(check: DriftCheck) -> SafeString:
    return badge(drift.STYLES.get(check.state, ""), check.get_state_display())


def of_watch(watch: AppRepository) -> dict[str, Any]:
    """Return the context of a watch's page about its newest check."""
    check = drift.newest(watch)
    return {"drift": check, "drift_badge": state_badge(check), "drift_summary": drift.summary(check)} if check else {}
