"""Write the audit log. Services call `record` in the transaction of the change, which covers the admin, API and commands.

Anyone who can view an object can read its entries, so they never contain secrets: `Changes` only says that one was changed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Model
from django.utils.text import capfirst

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AuditAction, AuditEntry, BulkOperation, SyncPause, SyncRun
from docora.security.crypto import EncryptedTextField
from docora.security.redaction import redact
from docora.text import clean_text, counted
from repositories_app.models import Repository

MAX_VALUE = 2048
"""Characters stored of a value. A base URL fits; longer patterns are cut."""


@dataclass(frozen=True)
class Changes:
    """Values before and after a change, by the labels of their fields."""

    old: dict[str, Any] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: type[Model], before: Mapping[str, Any], after: Mapping[str, Any]) -> "Changes":
        """Compare the fields that are in both mappings. For a secret, say only that it was added, changed or removed."""
        old: dict[str, Any] = {}
        new: dict[str, Any] = {}
        for name in after:
            if name not in before or before[name] == after[name]:
                continue
            column = model._meta.get_field(name)
            label = str(getattr(column, "verbose_name", name))
            if isinstance(column, EncryptedTextField):
                new[label] = "changed" if before[name] and after[name] else "added" if after[name] else "removed"
            else:
                old[label], new[label] = storable_value(before[name]), storable_value(after[name])
        return cls(old, new)

    @classmethod
    def initial(cls, model: type[Model], values: Mapping[str, Any]) -> "Changes":
        """Return the values of a new row that are not empty."""
        given = {name: value for name, value in values.items() if value not in (None, "")}
        return cls(new=cls.of(model, dict.fromkeys(given), given).new)

    def __bool__(self) -> bool:
        return bool(self.new)

    @property
    def summary(self) -> str:
        """`Base URL: https://a.example → https://b.example; paused: no → yes`, or only the names if that is too long."""
        parts = [
            f"{name}: {_text_of(self.old[name])} → {_text_of(value)}" if name in self.old else f"{name}: {value}"
            for name, value in self.new.items()
        ]
        text = "; ".join(parts)
        text = text if len(text) <= _SUMMARY_CHARS and "\n" not in text else f"Changed: {', '.join(self.new)}"
        return capfirst(text)


NOTHING = Changes()
_SUMMARY_CHARS = 300


def _text_of(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else "nothing" if value in (None, "") else str(value)


def storable_value(value: Any) -> Any:
    """Return the value as the log stores it: None, numbers and booleans as they are, everything else as redacted text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean_text(redact(str(value)), MAX_VALUE)


def record(
    actor: Actor,
    action: AuditAction,
    subjects: Iterable[Model],
    message: str,
    changes: Changes = NOTHING,
    *,
    reason: str = "",
    operation: BulkOperation | None = None,
) -> None:
    """Add one entry for each subject. The entry for a sync run is about its watch."""
    AuditEntry.objects.bulk_create(
        entry(actor, action, subject, message, changes, reason=reason, operation=operation) for subject in subjects
    )


def record_for_apps(
    actor: Actor,
    action: AuditAction,
    operation: BulkOperation,
    numbers: Mapping[int, int],
    before: str,
    after: str = "",
    *,
    reason: str = "",
) -> None:
    """Add one entry about the operation to the log of each app. `numbers`: key of the app → number of its repositories.

    The message has the number between `before` and `after`: `Re-sync of 3 repositories`.
    """
    texts = {pk: counted(number, "repository") for pk, number in numbers.items()}
    AuditEntry.objects.bulk_create(
        entry(actor, action, operation, f"{before} {texts[app.pk]}{after}", app=app, reason=reason)
        for app in App.objects.filter(pk__in=texts)
    )


def entry(
    actor: Actor,
    action: AuditAction,
    subject: Model | None,
    message: str,
    changes: Changes = NOTHING,
    *,
    app: App | None = None,
    reason: str = "",
    operation: BulkOperation | None = None,
) -> AuditEntry:
    """Return an entry that is not stored yet."""
    run = subject if isinstance(subject, SyncRun) else None
    if run is not None and run.watch is not None:
        subject = run.watch
    return AuditEntry(
        action=action,
        message=clean_text(message, 500),
        old=changes.old,
        new=changes.new,
        reason=clean_text(reason, 200),
        run_id=run.run_id if run else "",
        actor_kind=actor.kind,
        actor=clean_text(actor.name, 150),
        actor_id=actor.app.app_id if actor.app else str(actor.user.pk) if actor.user else "",
        address=clean_text(actor.address, 150),
        **_fields_of(subject, app, operation),
    )


def _fields_of(subject: Model | None, app: App | None, operation: BulkOperation | None) -> dict[str, str]:
    """Return the fields that say what the entry is about. An entry about a watch is also about its app and repository."""
    repository: Repository | None = None
    if isinstance(subject, AppRepository):
        app, repository = subject.app, subject.repository
    elif isinstance(subject, App):
        app = subject
    elif isinstance(subject, Repository):
        repository = subject
    elif isinstance(subject, BulkOperation):
        operation, app = subject, app or subject.app
    fields = {"operation_id": operation.operation_id if operation else ""}
    if subject is not None:
        fields |= {
            "subject_type": subject._meta.label_lower,
            "subject_id": str(subject.pk),
            "subject": "All syncing" if isinstance(subject, SyncPause) else clean_text(str(subject), 511),
        }
    if app is not None:
        fields |= {"app_id": app.app_id, "app_name": clean_text(app.name, 100)}
    if repository is not None:
        fields |= {
            "repository_id": repository.repository_id,
            "repository_name": clean_text(str(repository), 511),
        }
    return fields
