"""Client apps and the repositories that they watch."""

import secrets
from datetime import timedelta
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, Q
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app.models.root_causes import RootCause
from docora.security.crypto import EncryptedTextField
from docora.text import new_id
from repositories_app.models import Repository


def new_app_id() -> str:
    return new_id("app")


def new_watch_id() -> str:
    return secrets.token_hex(8)


def default_max_in_flight() -> int:
    return int(settings.MAX_IN_FLIGHT)


class App(models.Model):
    """A client app: where its notifications go, how they are signed, and how fast it wants them."""

    app_id = models.CharField("app id", max_length=50, unique=True, default=new_app_id, editable=False)
    name = models.CharField(max_length=100)
    base_url = models.CharField(
        "base URL", max_length=2048, help_text="Notifications go to {base URL}/create, /update, /delete."
    )
    email = models.EmailField("e-mail", max_length=255)
    website = models.CharField(max_length=2048, blank=True)
    description = models.CharField(max_length=500, blank=True)
    client_auth_key = EncryptedTextField("signing key", help_text="Notifications are signed with it.")
    new_auth_key = EncryptedTextField("new signing key", blank=True, default="", editable=False)
    key_rotation_started_at = models.DateTimeField(null=True, blank=True, editable=False)
    new_key_signs = models.BooleanField(
        default=False,
        editable=False,
        help_text="The app accepted the new key last: X-Docora-Signature is made with it.",
    )
    new_key_accepted_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The old key may be retired from then on."
    )
    paused = models.BooleanField(default=False, help_text="Nothing is sent to a paused app; what is due waits.")
    paused_reason = models.CharField(max_length=500, blank=True, editable=False)
    cooldown_until = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="The endpoint asked for a rest, or is down: nothing is sent earlier.",
    )
    down_count = models.PositiveIntegerField(
        default=0, editable=False, help_text="Runs in a row that found the endpoint down."
    )
    max_in_flight = models.PositiveSmallIntegerField(
        default=default_max_in_flight,
        help_text="Notifications under way at once, over all its repositories. 1 sends strictly one by one.",
    )
    send_sync_completed = models.BooleanField(
        "send sync completed", default=False, help_text="Also send /sync_completed after every complete sync."
    )
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name", "pk"]
        permissions = [
            ("onboard_app", "Can register a client app"),
            ("rotate_secret_app", "Can replace the token and the signing key of an app"),
        ]
        indexes = [models.Index(fields=["name", "id"], name="app_order")]
        constraints = [
            models.CheckConstraint(condition=Q(max_in_flight__gte=1), name="app_max_in_flight"),
            models.CheckConstraint(condition=~Q(name=""), name="app_has_name"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_rotating_key(self) -> bool:
        """Two signing keys are live: notifications carry a signature of each."""
        return self.key_rotation_started_at is not None


class AppToken(models.Model):
    """A bearer token of an app, known by its digest only. An app has several while one is being rotated.

    The digest is the SHA-256, in hex. That of an imported token is its bcrypt hash, which begins with `$`, until the app
    uses it for the first time (`services/imported_tokens.py`)."""

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="tokens")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    ending = models.CharField(max_length=4, help_text="The token's last characters, to tell one from another.")
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="It was replaced and is accepted until then.")

    class Meta:
        ordering = ["-created_at", "-pk"]
        constraints = [models.CheckConstraint(condition=~Q(digest=""), name="token_has_digest")]

    def __str__(self) -> str:
        return f"Token of {self.app}"


class Status(models.TextChoices):
    PENDING = "pending_snapshot", "pending"
    SCANNING = "scanning", "syncing"
    SYNCED = "synced", "synced"
    FAILED = "failed", "failed"


class SyncPause(models.Model):
    """All syncing is paused while the one row of this table exists; what is due waits."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    since = models.DateTimeField(default=timezone.now)
    paused_by = models.CharField(max_length=150)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="pause_is_one")]

    def __str__(self) -> str:
        return f"All syncing paused by {self.paused_by}"


class AppRepositoryQuerySet(models.QuerySet["AppRepository"]):
    """Time is the database's in every query that decides about a lease: workers' clocks may differ."""

    def alive(self) -> Self:
        """Watched, and neither the watch nor its app is being removed."""
        return self.filter(ended_at=None, app__ended_at=None)

    def leased(self) -> Self:
        """Watches that a worker owns now. A lease far in the future was written by a clock that was wrong."""
        limit = timedelta(seconds=2 * settings.LEASE_SECONDS)
        return self.filter(lease_until__gt=Now(), lease_until__lte=Now() + limit)

    def free(self) -> Self:
        """Watches that a worker may claim."""
        limit = timedelta(seconds=2 * settings.LEASE_SECONDS)
        return self.filter(Q(lease_until=None) | Q(lease_until__lte=Now()) | Q(lease_until__gt=Now() + limit))

    def unpaused(self) -> Self:
        """Neither their app nor all syncing is paused, and their records are all here."""
        return self.filter(~Exists(SyncPause.objects.all()), app__paused=False, arriving=False)

    def due(self) -> Self:
        """Alive and wanting a sync now, of an app that takes notifications now."""
        return (
            self.alive()
            .unpaused()
            .filter(Q(app__cooldown_until=None) | Q(app__cooldown_until__lte=Now()), next_sync_at__lte=Now())
        )

    def scheduled(self) -> Self:
        """Alive, free, and wanting a sync at a time to come."""
        return self.alive().free().filter(next_sync_at__gt=Now())

    def failing(self) -> Self:
        """Alive, and the last attempt did not end well: given up until the next rescan, or being tried again."""
        return self.alive().filter(failing_since__isnull=False)


class AppRepository(models.Model):
    """A watch: one repository watched by one app. `engine.md` calls it a *watch*; its rules say what each number means.

    `generation` fences workers, `resend_floor` says which delivery records count, `request_count` counts requests to sync,
    `claim` numbers the claims, `sequence_high` is the highest notification number reserved so far.
    """

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="watches")
    repository = models.ForeignKey(Repository, on_delete=models.PROTECT, related_name="watches")
    watch_id = models.CharField(max_length=16, unique=True, default=new_watch_id, editable=False)
    github_url = models.CharField("URL", max_length=2048, help_text="As the app spelled it.")
    github_token = EncryptedTextField("token", blank=True, default="")
    push_secret = EncryptedTextField(
        "push hook secret", blank=True, default="", help_text="The git host signs its push hooks with it."
    )
    ignore_patterns = models.TextField(
        blank=True, default="", help_text="As in .gitignore, one a line; what they match is not sent to this app."
    )
    status = models.CharField(max_length=20, choices=Status, default=Status.PENDING, editable=False)

    generation = models.BigIntegerField(default=1, editable=False)
    resend_floor = models.BigIntegerField(default=1, editable=False)
    request_count = models.BigIntegerField(default=1, editable=False)
    next_sync_at = models.DateTimeField(null=True, blank=True, default=timezone.now, editable=False)
    next_check_at = models.DateTimeField(default=timezone.now, editable=False)
    retry_count = models.PositiveIntegerField(default=0, editable=False)
    last_error = models.TextField(blank=True, default="", editable=False)
    last_error_cause = models.CharField(max_length=20, blank=True, default="", editable=False)
    root_cause = models.CharField(max_length=14, choices=RootCause, blank=True, default="", editable=False)
    last_status_code = models.PositiveSmallIntegerField("status code", null=True, blank=True, editable=False)
    last_response = models.CharField(
        "answer", max_length=500, blank=True, default="", editable=False, help_text="The first bytes of it."
    )
    failing_since = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="The first failure after the last success or re-sync."
    )
    last_scanned_at = models.DateTimeField("last checked", null=True, blank=True, editable=False)
    moved_at = models.DateTimeField(
        "last moved", null=True, blank=True, editable=False, help_text="When HEAD was last seen at another commit."
    )
    last_synced_at = models.DateTimeField("last sync", null=True, blank=True, editable=False)
    last_commit = models.CharField(max_length=64, blank=True, default="", editable=False)
    branch = models.CharField(max_length=255, blank=True, default="", editable=False)
    base_commit = models.CharField(max_length=64, blank=True, default="", editable=False)
    base_rules = models.CharField(max_length=64, blank=True, default="", editable=False)
    tree_files = models.PositiveBigIntegerField("files", default=0, editable=False)
    tree_bytes = models.PositiveBigIntegerField("bytes", default=0, editable=False)
    files_failing = models.PositiveBigIntegerField(default=0, editable=False)
    left_out = models.JSONField(
        default=dict, editable=False, help_text="Cause → how many files of the tree are not sent, or not as they are."
    )

    fencing_token = models.BigIntegerField(default=0, editable=False)
    claimed_request_count = models.BigIntegerField(default=0, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    lease_slots = models.PositiveSmallIntegerField(default=0, editable=False)
    lease_owner = models.CharField(max_length=100, blank=True, default="", editable=False)
    slots_requested_at = models.DateTimeField(null=True, blank=True, editable=False)
    sequence_high = models.BigIntegerField(default=0, editable=False)

    arriving = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="Its delivery records are being imported: nothing is checked or sent before all of them are here.",
    )
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = AppRepositoryQuerySet.as_manager()

    class Meta:
        verbose_name = "watched repository"
        verbose_name_plural = "watched repositories"
        ordering = ["app__name", "repository__owner", "repository__name", "pk"]
        permissions = [
            ("resync_apprepository", "Can force a re-sync of a watched repository"),
            ("retry_apprepository", "Can retry a failed watched repository and reset a circuit"),
        ]
        indexes = [
            models.Index(fields=["next_sync_at"], name="watch_due", condition=Q(ended_at=None)),
            models.Index(fields=["next_check_at"], name="watch_check", condition=Q(ended_at=None)),
            models.Index(fields=["lease_until"], name="watch_leased", condition=Q(lease_until__isnull=False)),
            models.Index(fields=["status", "app"], name="watch_status"),
            models.Index(fields=["ended_at"], name="watch_ended", condition=Q(ended_at__isnull=False)),
            models.Index(fields=["root_cause", "app"], name="watch_failing", condition=Q(failing_since__isnull=False)),
        ]
        constraints = [
            models.UniqueConstraint(fields=["app", "repository"], name="watch_unique_pair"),
            models.CheckConstraint(condition=Q(status__in=Status.values), name="watch_status_known"),
            models.CheckConstraint(
                condition=Q(failing_since=None, root_cause="") | (Q(failing_since__isnull=False) & ~Q(root_cause="")),
                name="watch_failing_has_cause",
            ),
            models.CheckConstraint(
                condition=Q(resend_floor__gte=1) & Q(generation__gte=models.F("resend_floor")),
                name="watch_floor_reached",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.repository} → {self.app}"

    @property
    def job_id(self) -> str:
        """The id of this watch's RQ job; it only saves work, the lease decides."""
        return f"{self.app.app_id}-{self.repository.repository_id}"

    @property
    def files_delivered(self) -> int:
        """Files of the tree that the app holds, as of the last complete plan."""
        return max(0, self.tree_files - self.files_failing)

    @property
    def is_active(self) -> bool:
        """Something is going on or about to: worth looking at again in a second."""
        return self.status in {Status.PENDING, Status.SCANNING}

    @property
    def is_failing(self) -> bool:
        return self.failing_since is not None


class FailedSync(AppRepository):
    """The watched repositories that are failing, as a list of its own in the admin."""

    class Meta:
        proxy = True
        default_permissions = ()  # whoever sees watched repositories sees these
        verbose_name = "failed sync"
        verbose_name_plural = "failed syncs"


class Imported(models.Model):
    """An app or a watch that an import has taken, by public ids; without a `repository_id` it is the app itself.

    It outlives what it speaks of, so that a further import does not bring back what was removed here since.
    """

    app_id = models.CharField(max_length=50)
    repository_id = models.CharField(max_length=50, blank=True, default="")

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["app_id", "repository_id"], name="imported_once")]

    def __str__(self) -> str:
        return f"{self.app_id} {self.repository_id}".rstrip()
