"""The audit log: who did what, from where, to what, and when. The database refuses to change or remove its rows."""

from collections.abc import Callable

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils import timezone

from deliveries_app.models.apps import App
from deliveries_app.models.watches import AppRepository


class AuditAction(models.TextChoices):
    """What was done. The CSV export has the value. Values never change, because old entries keep theirs."""

    SIGN_IN = "user.signed_in", "Signed in"
    SIGN_OUT = "user.signed_out", "Signed out"
    SIGN_IN_FAILED = "user.sign_in_failed", "Sign-in failed"
    PASSWORD = "user.password_changed", "Password changed"
    SECOND_FACTOR = "user.second_factor_changed", "Second factor changed"
    SIGN_IN_LINK = "user.sign_in_link_created", "Sign-in link created"
    USER_ADDED = "user.added", "User added"
    USER_CHANGED = "user.changed", "User changed"
    USER_DELETED = "user.deleted", "User deleted"
    GROUP_ADDED = "group.added", "Group added"
    GROUP_CHANGED = "group.changed", "Group changed"
    GROUP_DELETED = "group.deleted", "Group deleted"

    APP_REGISTERED = "app.registered", "App registered"
    APP_CHANGED = "app.changed", "App changed"
    APP_PAUSED = "app.paused", "App paused"
    APP_RESUMED = "app.resumed", "App resumed"
    APP_DELETED = "app.deleted", "App deleted"
    APP_IMPORTED = "app.imported", "App imported"
    PING = "app.pinged", "Test ping sent"
    TOKEN_ROTATED = "app.token_rotated", "Token rotated"
    TOKENS_RETIRED = "app.tokens_retired", "Old tokens retired"
    KEY_STARTED = "app.key_rotation_started", "Key rotation started"
    KEY_RETIRED = "app.old_key_retired", "Old signing key retired"
    KEY_DISCARDED = "app.new_key_discarded", "New signing key discarded"

    WATCHED = "repository.watched", "Repository watched"
    UNWATCHED = "repository.unwatched", "Repository no longer watched"
    WATCH_CHANGED = "repository.changed", "Repository's settings changed"
    WATCH_PAUSED = "repository.paused", "Repository paused"
    WATCH_RESUMED = "repository.resumed", "Repository resumed"
    WATCH_IMPORTED = "repository.imported", "Repository imported"
    CIRCUIT_RESET = "repository.circuit_reset", "Circuit reset"

    RESYNC = "sync.resync", "Re-sync"
    RETRY = "sync.retry", "Retry"
    RESEND = "sync.resend", "Resend"
    CANCEL = "sync.cancelled", "Cancelled"
    CONTINUE = "sync.continued", "Re-sync continued"
    CHECK = "sync.check", "Check for differences"
    DIFFERENCES = "sync.differences_sent", "Differences sent"
    ALL_PAUSED = "sync.all_paused", "All syncing paused"
    ALL_RESUMED = "sync.all_resumed", "All syncing resumed"

    GITHUB_APP_ADDED = "github_app.added", "GitHub App added"
    GITHUB_APP_CHANGED = "github_app.changed", "GitHub App changed"
    GITHUB_APP_DELETED = "github_app.deleted", "GitHub App deleted"
    GITHUB_APP_TESTED = "github_app.tested", "GitHub App tested"

    ADDED = "other.added", "Added"
    CHANGED = "other.changed", "Changed"
    DELETED = "other.deleted", "Deleted"


class ActorKind(models.TextChoices):
    USER = "user", "user"
    APP = "app", "app, through the API"
    COMMAND = "command", "command line"
    SYSTEM = "system", "Docora"
    STRANGER = "stranger", "not signed in"


class AuditEntry(models.Model):
    """One action. Names and ids are copied: the entry stays as it is when what it names is renamed or deleted.

    `docora.db.append_only` refuses UPDATE, DELETE and TRUNCATE. Only `sweep.retention` removes old entries.
    """

    created_at = models.DateTimeField("time", default=timezone.now, editable=False)
    actor_kind = models.CharField("kind of actor", max_length=8, choices=ActorKind)
    actor = models.CharField("by", max_length=150, help_text="Name of the user or app, at that time.")
    actor_id = models.CharField(
        "actor's ID", max_length=64, blank=True, default="", help_text="The user's key, or the app's ID."
    )
    address = models.CharField(
        max_length=150,
        blank=True,
        default="",
        help_text="IP address of the request. For a command, the operating system's user and host.",
    )
    action = models.CharField(max_length=40)
    message = models.CharField(max_length=500)
    subject_type = models.CharField(
        max_length=100, blank=True, default="", help_text="What was changed, such as deliveries_app.app."
    )
    subject_id = models.CharField("subject's key", max_length=64, blank=True, default="")
    subject = models.CharField("what", max_length=511, blank=True, default="")
    app_id = models.CharField("app ID", max_length=50, blank=True, default="")
    app_name = models.CharField("app", max_length=100, blank=True, default="")
    repository_id = models.CharField("repository ID", max_length=50, blank=True, default="")
    repository_name = models.CharField("repository", max_length=511, blank=True, default="")
    run_id = models.CharField("sync run", max_length=50, blank=True, default="")
    operation_id = models.CharField("bulk operation", max_length=50, blank=True, default="")
    old = models.JSONField(
        "old values", default=dict, encoder=DjangoJSONEncoder, help_text="Values before the change. Never a secret."
    )
    new = models.JSONField(
        "new values", default=dict, encoder=DjangoJSONEncoder, help_text="Of a secret, only that it was changed."
    )
    reason = models.CharField(max_length=200, blank=True, default="", help_text="What the person said about it.")

    class Meta:
        verbose_name = "audit log entry"
        verbose_name_plural = "audit log entries"
        default_permissions = ("view",)
        permissions = [("export_auditentry", "Can export the audit log")]
        ordering = ["-created_at", "-pk"]
        # None of them is partial: SQLite cannot tell that a query with parameters implies the condition.
        indexes = [
            models.Index(fields=["created_at", "id"], name="audit_order"),
            models.Index(fields=["app_id", "created_at", "id"], name="audit_app"),
            models.Index(fields=["repository_id", "created_at", "id"], name="audit_repository"),
            models.Index(fields=["actor", "created_at", "id"], name="audit_actor"),
            models.Index(fields=["action", "created_at", "id"], name="audit_action"),
            models.Index(fields=["address", "created_at", "id"], name="audit_address"),
            models.Index(fields=["subject_type", "subject_id", "created_at", "id"], name="audit_subject"),
            models.Index(fields=["operation_id"], name="audit_operation"),
            models.Index(fields=["run_id"], name="audit_run"),
        ]

    def __str__(self) -> str:
        return self.message

    @property
    def action_label(self) -> str:
        return str(AuditAction(self.action).label) if self.action in AuditAction.values else self.action

    @property
    def changes(self) -> list[tuple[str, object, object]]:
        """Each changed value with its name, before and after; None where there is none."""
        names = dict.fromkeys([*self.old, *self.new])
        return [(name, self.old.get(name), self.new.get(name)) for name in names]

    @property
    def changes_not_in_message(self) -> list[tuple[str, object, object]]:
        """The changes, unless the message already contains them."""
        message_is_complete = " → " in self.message or all(value in _OF_SECRETS for value in self.new.values())
        return [] if message_is_complete else self.changes

    @classmethod
    def about(cls, row: models.Model) -> Q:
        """Match the entries about a row, and about what belongs to it: an app's repositories, an operation's runs."""
        of_model = _OF_MODEL.get(row._meta.label_lower)
        return of_model(row) if of_model else Q(subject_type=row._meta.label_lower, subject_id=str(row.pk))


_OF_SECRETS = ("added", "changed", "removed")
_OF_MODEL: dict[str, Callable[..., Q]] = {
    "deliveries_app.app": lambda app: Q(app_id=app.app_id),
    "deliveries_app.apprepository": lambda watch: Q(
        app_id=watch.app.app_id, repository_id=watch.repository.repository_id
    ),
    "repositories_app.repository": lambda repository: Q(repository_id=repository.repository_id),
    "deliveries_app.bulkoperation": lambda operation: Q(operation_id=operation.operation_id),
    "deliveries_app.syncrun": lambda run: Q(run_id=run.run_id),
}


class AppAction(models.Model):
    """Actions of client apps before `AuditEntry` existed, to which a migration has copied them.

    No supported version writes rows here. Processes of 1.0.0 still read the table when they delete an app.
    """

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="actions")
    watch = models.ForeignKey(AppRepository, null=True, on_delete=models.SET_NULL, related_name="actions")
    subject = models.CharField(max_length=511, help_text="Name of the app, or of the repository.")
    message = models.CharField(max_length=200)
    address = models.CharField(max_length=45, help_text="IP address that the request came from.")
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        default_permissions = ()
        ordering = ["-created_at", "-pk"]

    def __str__(self) -> str:
        return self.message


class ContactMail(models.Model):
    """An email to an app's contact about a change of its base URL, key, token or contact.

    `text` says what was changed, by whom and how. The row is stored in the transaction of the change.
    `monitoring.alerts.contacts` sends it and sets `sent_at`. Nothing is sent before `due_at`, which is set while a process is
    sending, after a failure, and to collect further changes.
    """

    app_id = models.CharField(max_length=50)
    app_name = models.CharField(max_length=100)
    email = models.EmailField(max_length=255)
    text = models.TextField()
    created_at = models.DateTimeField(default=timezone.now)
    due_at = models.DateTimeField(null=True)
    sent_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0, help_text="Failed attempts.")

    class Meta:
        default_permissions = ()
        indexes = [
            models.Index(fields=["created_at"], name="contact_mail_unsent", condition=Q(sent_at=None)),
            models.Index(fields=["created_at"], name="contact_mail_created"),
        ]

    def __str__(self) -> str:
        return f"{self.app_name}: {self.text}"
