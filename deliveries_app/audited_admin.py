"""Replace Django's admin log with Docora's audit log: model admins write to it, and an object's history page reads from it.

The admin site mixes `AuditedAdmin` into every registered model admin, including those of other packages.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditAction, AuditEntry, BulkOperation
from deliveries_app.reports import audit_log
from docora.web.paginators import BoundedPaginator
from repositories_app.models import Repository

PER_PAGE = 50
_ACCOUNTS: dict[type[Model], str] = {get_user_model(): "user", Group: "group"}
"""Models of accounts → the first part of the names of their actions."""
_SHOWN = {
    "username", "first_name", "last_name", "email", "is_active", "is_staff", "is_superuser", "groups",
    "user_permissions", "last_login", "date_joined", "name", "permissions",
}  # fmt: skip
"""Fields of users and groups whose values are recorded. Others may be secret."""


@dataclass(frozen=True)
class FormChanges:
    """What a form changes. Django passes it on to `log_addition` and `log_change` as the message, empty if nothing changes."""

    message: str
    changes: audit.Changes
    is_password: bool


class AuditedAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic at run time
    """Write to the audit log instead of `LogEntry`, in the transaction of the change, and show a row's entries.

    If a model admin sets `audited_by_services`, the services that it calls write the entries.
    """

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        parts = super().construct_change_message(request, form, formsets, add)
        text = LogEntry(change_message=json.dumps(parts)).get_change_message() if parts else ""
        names = list(form.changed_data)
        is_password = bool(names) and all("password" in name for name in names)
        changes = _changes_of(form, names, _SHOWN if self.model in _ACCOUNTS else frozenset(), add=add)
        return FormChanges(text, changes, is_password and not add)

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._record(request, [obj], "added", message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        if not isinstance(message, FormChanges) or message.message:
            self._record(request, [obj], "changed", message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        """Do nothing: `delete_model` and `delete_queryset` record it together with the deletion."""

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        obj.recorded_by_admin = True  # so that the signals of `services.sign_ins` do not record it as well
        super().save_model(request, obj, form, change)

    def delete_model(self, request: HttpRequest, obj: Model) -> None:
        with transaction.atomic():
            self._record(request, [obj], "deleted", "Deleted")
            super().delete_model(request, obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        with transaction.atomic():
            self._record(request, queryset, "deleted", "Deleted")
            super().delete_queryset(request, queryset)

    def _record(self, request: HttpRequest, rows: Iterable[Model], verb: str, message: Any) -> None:
        # No class-level default: this class comes first in the MRO, so it would override the model admin's own value.
        if getattr(self, "audited_by_services", False):
            return
        action = AuditAction(f"{_ACCOUNTS.get(self.model, 'other')}.{verb}")
        changes = audit.NOTHING
        if isinstance(message, FormChanges):
            changes = message.changes
            if message.is_password:
                action = AuditAction.PASSWORD
            message = message.message
        audit.record(Actor.of_request(request), action, rows, str(message) or verb.capitalize(), changes)

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the entries about a row, newest first, except those about rows that the user cannot view."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        if not self.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        hidden = [
            model._meta.label_lower
            for model in (App, AppRepository, Repository, BulkOperation)
            if not self.admin_site.get_model_admin(model).has_view_or_change_permission(request)
        ]
        entries = AuditEntry.objects.filter(AuditEntry.about(obj)).exclude(subject_type__in=hidden)
        page = BoundedPaginator(entries, PER_PAGE).get_page(request.GET.get("p"))
        context = {
            **self.admin_site.each_context(request),
            "title": f"Audit log: {obj}",
            "original": obj,
            "opts": self.opts,
            "page": page,
            "all_entries": audit_log.list_of(request.user, obj),
            **(extra_context or {}),
        }
        template = f"admin/{self.opts.app_label}/{self.opts.model_name}/object_history.html"
        return TemplateResponse(request, [template, "admin/object_history.html"], context)


def _changes_of(form: Any, names: Sequence[str], with_values: Collection[str], *, add: bool) -> audit.Changes:
    """Return what a form changes: the values of the fields `with_values`, and for all others only that they changed."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name in names:
        field = form.fields.get(name)
        label = "password" if "password" in name else str(getattr(field, "label", None) or name)
        if name not in with_values:
            new[label] = "added" if add else "changed"
            continue
        if not add:
            old[label] = _shown(form.initial.get(name))
        new[label] = _shown(form.cleaned_data.get(name))
    return audit.Changes(old, new)


def _shown(value: Any) -> Any:
    if isinstance(value, QuerySet | list | tuple):
        return audit.storable_value(", ".join(sorted(map(_name_of, value))))
    return audit.storable_value(value)


def _name_of(value: Any) -> str:
    return f"{value.content_type.app_label}.{value.codename}" if isinstance(value, Permission) else str(value)
