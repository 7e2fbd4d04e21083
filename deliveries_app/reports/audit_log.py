"""Search the audit log, and link its entries to the rows that they are about."""

from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.models import AnonymousUser, User
from django.db.models import Model, Q, QuerySet
from django.urls import reverse

from deliveries_app.models import App, AppRepository, AuditAction, AuditEntry, BulkOperation, SyncRun
from deliveries_app.permissions import Permission
from deliveries_app.reports.history import Search, containing
from docora.http.addresses import is_address
from repositories_app.models import Repository

_IDS = {"app_": "app_id", "repo_": "repository_id", "run_": "run_id", "bulk_": "operation_id"}


def search(term: str) -> Search:
    """Search by the exact id of an app, repository, run or operation, by address, or by part of the text or the actor."""
    for prefix, column in _IDS.items():
        if term.startswith(prefix):
            return Search(Q(**{column: term}))
    if is_address(term):
        return Search(Q(address=term))
    return Search(containing(term, "message", "subject", "reason", "actor", "address"), in_window=True)


def action_named(text: str) -> str | None:
    """Return the action with this label or value, ignoring case."""
    text = text.casefold()
    return next((action.value for action in AuditAction if text in {action.value, str(action.label).casefold()}), None)


def list_of(user: User | AnonymousUser, row: Model) -> str:
    """Return the URL of the audit log filtered by a row; empty without such a filter or permission to view the log."""
    query: dict[str, Any] = {}
    match row:
        case App():
            query = {"app": row.pk}
        case AppRepository():
            query = {"app": row.app_id, "q": row.repository.repository_id}
        case Repository():
            query = {"q": row.repository_id}
        case BulkOperation():
            query = {"q": row.operation_id}
        case SyncRun():
            query = {"q": row.run_id}
    if not query or not user.has_perm(Permission.VIEW_AUDIT_LOG):
        return ""
    return f"{reverse('admin:deliveries_app_auditentry_changelist')}?{urlencode(query)}"


def links(user: User | AnonymousUser, entry: AuditEntry) -> dict[str, str]:
    """Return the URLs of the pages of the rows that the entry is about, by column, if the rows still exist."""
    rows: dict[str, QuerySet[Any]] = {
        "app_id": App.objects.filter(app_id=entry.app_id),
        "watch": AppRepository.objects.filter(app__app_id=entry.app_id, repository__repository_id=entry.repository_id),
        "repository_id": Repository.objects.filter(repository_id=entry.repository_id),
        "run_id": SyncRun.objects.filter(run_id=entry.run_id),
        "operation_id": BulkOperation.objects.filter(operation_id=entry.operation_id),
    }
    pages = {}
    for name, found in rows.items():
        options = found.model._meta
        if user.has_perm(f"{options.app_label}.view_{options.model_name}"):
            pk = found.order_by().values_list("pk", flat=True).first()
            if pk is not None:
                pages[name] = reverse(f"admin:{options.app_label}_{options.model_name}_change", args=[pk])
    return pages
