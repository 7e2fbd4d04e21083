"""Checks for differences between an app's copy of a repository and what it has acknowledged (`engine.md` §13)."""

from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from deliveries_app.models.watches import SECRETS, AppRepository, is_free
from docora.db.fields import BytewiseTextField


class DriftState(models.TextChoices):
    """Where a check is, or how it ended."""

    QUEUED = "queued", "Queued"
    CHECKING = "checking", "Checking"
    EQUAL = "equal", "No differences"
    DIFFERS = "differs", "Differences found"
    UNSUPPORTED = "unsupported", "Not supported"
    NOT_CHECKED = "not_checked", "Not checked"
    CANCELLED = "cancelled", "Cancelled"


class DriftKind(models.TextChoices):
    """How a file of the app's copy differs from what the app has acknowledged."""

    MISSING = "missing", "Missing"
    DIFFERENT = "different", "Different"
    EXTRA = "extra", "Extra"


class DriftCheckQuerySet(models.QuerySet["DriftCheck"]):
    def open(self) -> Self:
        return self.filter(ended_at=None)

    def for_list(self) -> Self:
        """Read watches, apps and repositories with the checks, but no secrets."""
        watches = self.select_related("watch__app", "watch__repository")
        return watches.defer(*(f"watch__{name}" for name in SECRETS))

    def abandoned(self) -> Self:
        """Return checks that are shown as running although no worker owns their watch."""
        free = AppRepository.objects.filter(is_free(), pk=OuterRef("watch_id"))
        return self.open().filter(Exists(free), state=DriftState.CHECKING)


class DriftCheck(models.Model):
    """One check of one watch. It is open until it has `ended_at`, and a watch has one open check at most.

    - `fencing_token` is the claim that runs the check. Only that one may record its result.
    - `attempts` counts the current start of the check and those after which the worker died.
    - `compared` is the number of paths on either side. `missing`, `different` and `extra` count all differences; their
      `files` are listed up to a limit.
    """

    watch = models.ForeignKey(AppRepository, on_delete=models.CASCADE, related_name="drift_checks", db_index=False)
    requested_by = models.CharField(max_length=150)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    state = models.CharField(max_length=11, choices=DriftState, default=DriftState.QUEUED)
    message = models.CharField(max_length=500, blank=True, default="", help_text="Why there is no result.")
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    fencing_token = models.BigIntegerField(default=0)
    attempts = models.PositiveSmallIntegerField(default=0)
    commit_sha = models.CharField(max_length=64, blank=True, default="")
    compared = models.PositiveBigIntegerField(default=0)
    missing = models.PositiveBigIntegerField(default=0)
    different = models.PositiveBigIntegerField(default=0)
    extra = models.PositiveBigIntegerField(default=0)
    listed = models.PositiveIntegerField(default=0, help_text="Differences that are listed.")
    sent_at = models.DateTimeField(null=True, help_text="When the listed differences were sent.")
    sent_by = models.CharField(max_length=150, blank=True, default="")
    sent_run = models.CharField(max_length=50, blank=True, default="", help_text="The run_… that sent them.")

    objects = DriftCheckQuerySet.as_manager()

    class Meta:
        default_permissions = ()  # the permission to view watched repositories covers these
        verbose_name = "check for differences"
        verbose_name_plural = "checks for differences"
        ordering = ["-created_at", "-pk"]
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="drift_newest"),
            models.Index(fields=["watch", "-created_at", "-id"], name="drift_of_watch"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["watch"], condition=Q(ended_at=None), name="drift_one_open"),
            models.CheckConstraint(condition=Q(state__in=DriftState.values), name="drift_state_known"),
            models.CheckConstraint(
                condition=Q(ended_at=None, state__in=[DriftState.QUEUED, DriftState.CHECKING])
                | (Q(ended_at__isnull=False) & ~Q(state__in=[DriftState.QUEUED, DriftState.CHECKING])),
                name="drift_ends_with_result",
            ),
        ]

    def __str__(self) -> str:
        return f"Check of {self.watch}"

    @property
    def is_open(self) -> bool:
        return self.ended_at is None

    @property
    def differences(self) -> int:
        return self.missing + self.different + self.extra

    @property
    def can_send(self) -> bool:
        """Whether the listed differences can still be sent."""
        return self.state == DriftState.DIFFERS and self.sent_at is None


class DriftFile(models.Model):
    """One difference. `sha` is what the app says it holds. `sequence` is that of the notification that it acknowledged."""

    check_of = models.ForeignKey(DriftCheck, on_delete=models.CASCADE, related_name="files", db_index=False)
    path = BytewiseTextField()
    kind = models.CharField(max_length=9, choices=DriftKind)
    sha = models.CharField("SHA-256", max_length=64, blank=True, default="")
    sequence = models.BigIntegerField(null=True)

    class Meta:
        default_permissions = ()
        ordering = ["path"]
        constraints = [
            models.UniqueConstraint(fields=["check_of", "path"], name="drift_unique_path"),
            models.CheckConstraint(condition=Q(kind__in=DriftKind.values), name="drift_kind_known"),
        ]

    def __str__(self) -> str:
        return self.path
