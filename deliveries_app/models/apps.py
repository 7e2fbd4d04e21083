"""Client apps and their tokens."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from docora.security.crypto import EncryptedTextField
from docora.text import new_id
from repositories_app.git.url import host_of
from repositories_app.models import GitHubApp

APP_SECRETS = ("client_auth_key", "new_auth_key")
"""The encrypted columns of an app, which lists and polls don't read."""


def new_app_id() -> str:
    return new_id("app")


def default_max_in_flight() -> int:
    return int(settings.MAX_IN_FLIGHT)


def _limit(own: int | None, default: int) -> int | None:
    """Return a quota: the app's own, or the default. 0 means none."""
    return (default if own is None else own) or None


class App(models.Model):
    """A client app: where its notifications go, how they are signed, and how many it takes at once."""

    app_id = models.CharField("app ID", max_length=50, unique=True, default=new_app_id, editable=False)
    name = models.CharField(max_length=100)
    base_url = models.CharField(
        "base URL", max_length=2048, help_text="Notifications are sent to {base URL}/create, /update and /delete."
    )
    email = models.EmailField(
        "email",
        max_length=255,
        help_text="The app's contact. Notified by email when the base URL, the signing key or the token is changed.",
    )
    website = models.CharField(max_length=2048, blank=True)
    description = models.CharField(max_length=500, blank=True)
    client_auth_key = EncryptedTextField("signing key", help_text="Signs notifications.")
    new_auth_key = EncryptedTextField("new signing key", blank=True, default="", editable=False)
    key_rotation_started_at = models.DateTimeField(null=True, blank=True, editable=False)
    new_key_signs = models.BooleanField(
        default=False,
        editable=False,
        help_text="Whether X-Docora-Signature uses the new key, because the app last accepted that one.",
    )
    new_key_accepted_at = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="When the app first accepted the new key. The old key can then be retired.",
    )
    paused = models.BooleanField(
        default=False, help_text="While paused, nothing is sent to the app. Syncs wait until it is resumed."
    )
    paused_reason = models.CharField(max_length=500, blank=True, editable=False)
    cooldown_until = models.DateTimeField(
        null=True,
        blank=True,
        editable=False,
        help_text="The endpoint asked Docora to wait, or is down. Nothing is sent before this time.",
    )
    down_count = models.PositiveIntegerField(
        default=0, editable=False, help_text="Consecutive runs that found the endpoint down."
    )
    max_in_flight = models.PositiveSmallIntegerField(
        "concurrent requests",
        default=default_max_in_flight,
        help_text="Maximum across all repositories of the app. 1 sends one notification at a time.",
    )
    in_flight_limit = models.PositiveSmallIntegerField(
        null=True,
        editable=False,
        help_text="The administrator's limit, while the app itself has chosen fewer concurrent requests.",
    )
    pace_slots = models.PositiveSmallIntegerField(
        null=True,
        editable=False,
        help_text="Concurrent requests that the app accepts, while that is fewer than `max_in_flight`.",
    )
    pace_gap = models.FloatField(
        default=0.0, db_default=0.0, editable=False, help_text="Seconds between the starts of two notifications."
    )
    paced_at = models.DateTimeField(null=True, editable=False, help_text="When the pace was last changed.")
    pinged_at = models.DateTimeField(null=True, editable=False, help_text="When the app last accepted a test ping.")
    ping_failed_at = models.DateTimeField(
        null=True, editable=False, help_text="When the last test ping failed. Empty if it was accepted."
    )
    sequence_high = models.BigIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="The highest sequence reserved for a watch that was removed. New watches continue above it.",
    )
    send_sync_completed = models.BooleanField(
        "send sync_completed",
        default=False,
        help_text="Send a /sync_completed notification whenever a sync completes in full.",
    )
    answers_verify = models.BooleanField(
        "check for differences",
        default=False,
        db_default=False,
        help_text="The app answers /verify, so its copies can be checked for differences.",
    )
    max_watches = models.PositiveIntegerField(
        "watched repositories", null=True, blank=True, help_text="Maximum number of repositories the app can watch."
    )
    max_files = models.PositiveBigIntegerField(
        "files", null=True, blank=True, help_text="Maximum number of files in all of the app's watched repositories."
    )
    max_bytes = models.PositiveBigIntegerField(
        "bytes", null=True, blank=True, help_text="Maximum number of bytes in all of the app's watched repositories."
    )
    max_resyncs_per_hour = models.PositiveIntegerField(
        "re-syncs per hour",
        null=True,
        blank=True,
        help_text="Maximum number of re-syncs the app itself can request per hour.",
    )
    resyncs_used = models.FloatField(
        default=0.0, db_default=0.0, editable=False, help_text="Re-syncs of the quota in use at `resyncs_used_at`."
    )
    resyncs_used_at = models.DateTimeField(null=True, editable=False)
    github_app = models.ForeignKey(
        GitHubApp,
        verbose_name="GitHub App",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="apps",
        help_text="Reads the app's repositories on GitHub that have no token of their own. The app can then watch every "
        "repository that the GitHub App is installed on.",
    )
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["name", "pk"]
        permissions = [
            ("onboard_app", "Can register a client app"),
            ("rotate_secret_app", "Can rotate the token and the signing key of an app"),
        ]
        indexes = [models.Index(fields=["name", "id"], name="app_order")]
        constraints = [
            models.CheckConstraint(condition=Q(max_in_flight__gte=1), name="app_max_in_flight"),
            models.CheckConstraint(condition=~Q(name=""), name="app_has_name"),
        ]

    def __str__(self) -> str:
        return self.name

    def github_app_for(self, canonical_url: str, token: str) -> GitHubApp | None:
        """Return the assigned GitHub App if it is one of the repository's host and there is no `token` that reads it."""
        github_app = None if token else self.github_app
        return github_app if github_app and host_of(canonical_url) == f"{github_app.host}/" else None

    @property
    def max_in_flight_limit(self) -> int:
        """The most concurrent requests that the app may choose."""
        return self.in_flight_limit or self.max_in_flight

    @property
    def watch_limit(self) -> int | None:
        """The most repositories that the app can watch. Like the limits below, None if there is no quota."""
        return _limit(self.max_watches, settings.MAX_WATCHES_PER_APP)

    @property
    def file_limit(self) -> int | None:
        return _limit(self.max_files, settings.MAX_FILES_PER_APP)

    @property
    def byte_limit(self) -> int | None:
        return _limit(self.max_bytes, settings.MAX_BYTES_PER_APP)

    @property
    def resync_limit(self) -> int | None:
        """The most re-syncs per hour that the app itself can request."""
        return _limit(self.max_resyncs_per_hour, settings.MAX_RESYNCS_PER_HOUR)

    @property
    def is_on_hold(self) -> bool:
        """Whether the app is in a cooldown, because its endpoint is down or asked to wait."""
        return self.cooldown_until is not None and self.cooldown_until > timezone.now()

    @property
    def slots_allowed(self) -> int:
        """How many notifications may be in flight now."""
        return min(self.pace_slots or self.max_in_flight, self.max_in_flight)

    @property
    def is_slowed_down(self) -> bool:
        return self.slots_allowed < self.max_in_flight or self.pace_gap > 0

    @property
    def is_rotating_key(self) -> bool:
        """Whether two signing keys are in use. Notifications then carry a signature from each."""
        return self.key_rotation_started_at is not None


class AppToken(models.Model):
    """A bearer token of an app. Only its digest is stored. An app has several tokens while one is being rotated.

    The digest is the SHA-256 in hex. For an imported token it is the bcrypt hash, which begins with `$`, until the app first
    uses the token (`services/imported_tokens.py`).
    """

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="tokens")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    ending = models.CharField(max_length=4, help_text="The last characters of the token, to tell tokens apart.")
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(
        null=True, blank=True, help_text="The token was rotated and expires at this time."
    )

    class Meta:
        ordering = ["-created_at", "-pk"]
        constraints = [models.CheckConstraint(condition=~Q(digest=""), name="token_has_digest")]

    def __str__(self) -> str:
        return f"Token of {self.app}"
