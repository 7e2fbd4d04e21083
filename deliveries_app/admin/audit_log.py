"""The audit log: the list, the page of one entry, the CSV export."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.db.models import Q
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries_app.admin.base import column
from deliveries_app.admin.filters import AppFilter, HistoryFilter, PeriodFilter
from deliveries_app.admin.history import HistoryAdmin
from deliveries_app.models import ActorKind, App, AuditAction, AuditEntry
from deliveries_app.permissions import Permission
from deliveries_app.reports import audit_log
from docora.templatetags.docora import ago
from docora.text import visible
from docora.web.csv_export import Cell

_SUGGESTED = 200  # names of users


class AuditAppFilter(AppFilter, HistoryFilter):
    """A filter by app. To find all entries of a deleted app, enter its ID; its name finds only the newest."""

    @cached_property
    def public_ids(self) -> list[str]:
        known = list(App.objects.filter(pk__in=self.apps).order_by().values_list("app_id", flat=True))
        typed = self.given("app_name")
        return known or ([typed] if typed.startswith("app_") else [])

    @property
    def in_window(self) -> bool:
        return bool(self.given("app_name")) and not self.public_ids

    @property
    def is_narrow(self) -> bool:
        return bool(self.public_ids)

    def condition(self) -> Q:
        if self.in_window:
            return Q(app_name__istartswith=self.given("app_name"))
        return Q(app_id__in=self.public_ids)


class SuggestingFilter(HistoryFilter):
    """A filter by one value, typed with suggestions."""

    template = "admin/deliveries_app/auditentry/typed_filter.html"

    def suggestions(self) -> list[str]:
        raise NotImplementedError

    def choices(self, changelist: ChangeList) -> Iterator[dict[str, Any]]:
        name, suggestions = self.parameters[0], self.suggestions()
        yield self.form_choice(changelist, name=name, value=self.value, suggestions=suggestions)


class ActionFilter(SuggestingFilter):
    title = "action"
    parameters = ("action",)

    def suggestions(self) -> list[str]:
        return [str(action.label) for action in AuditAction]

    def condition(self) -> Q:
        action = audit_log.action_named(self.value)
        return Q(action=action) if action else Q(pk__in=[])


class ActorFilter(SuggestingFilter):
    title = "actor"
    parameters = ("actor",)

    def suggestions(self) -> list[str]:
        model = get_user_model()
        names = model._default_manager.order_by(model.USERNAME_FIELD).values_list(model.USERNAME_FIELD, flat=True)
        return [*names[:_SUGGESTED], "command line", "Docora"]

    def condition(self) -> Q:
        return Q(actor=self.value)


@admin.register(AuditEntry)
class AuditEntryAdmin(HistoryAdmin[AuditEntry]):
    list_display = ("what_was_done", "about", "app", "by", "address", "when")
    list_filter = (AuditAppFilter, ActorFilter, ActionFilter, PeriodFilter)
    sortable_by = ("when",)
    search_help_text = "ID of an app, repository, run or operation, an IP address, or part of a name or action"
    empty_text = "Nothing has been recorded yet."
    page_template = "admin/deliveries_app/auditentry/change_form.html"
    search = staticmethod(audit_log.search)
    csv_name = "audit-log"
    csv_header = (
        "time", "actor_kind", "actor", "actor_id", "address", "action", "message", "reason", "subject_type",
        "subject_id", "subject", "app_id", "app", "repository_id", "repository", "run_id", "bulk_operation_id", "old",
        "new",
    )  # fmt: skip

    def has_export_permission(self, request: HttpRequest) -> bool:
        return self.can(request, Permission.EXPORT_AUDIT_LOG)

    @admin.display(description="action")
    def what_was_done(self, entry: AuditEntry) -> SafeString:
        names = ", ".join(entry.new)
        details = entry.reason or (names if entry.message == entry.action_label else "")
        quiet = format_html('<div><span class="quiet audit-note">{}</span></div>', visible(details)) if details else ""
        return format_html('<div class="problem"><span>{}</span>{}</div>', visible(entry.message), quiet)

    about = column(
        "what",
        lambda entry: visible(entry.repository_name or (entry.subject if entry.subject != entry.app_name else "")),
    )
    app = column("app", lambda entry: visible(entry.app_name))

    @admin.display(description="by")
    def by(self, entry: AuditEntry) -> SafeString | str:
        if entry.actor_kind == ActorKind.STRANGER:
            return format_html('{} <span class="quiet">(not signed in)</span>', visible(entry.actor))
        return visible(entry.actor)

    when = column("time", lambda entry: ago(entry.created_at), ordering="created_at")

    def page_context(self, request: HttpRequest, entry: AuditEntry) -> dict[str, Any]:
        """Return the entry, and links to the pages of the rows that it is about."""
        return {"entry": entry, "links": audit_log.links(request.user, entry)}

    def csv_rows(self, page: list[AuditEntry]) -> list[Sequence[Cell]]:
        return [
            (
                entry.created_at, entry.actor_kind, entry.actor, entry.actor_id, entry.address, entry.action,
                entry.message, entry.reason, entry.subject_type, entry.subject_id, entry.subject, entry.app_id,
                entry.app_name, entry.repository_id, entry.repository_name, entry.run_id, entry.operation_id,
                _as_json(entry.old), _as_json(entry.new),
            )
            for entry in page
        ]  # fmt: skip


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) if values else ""
