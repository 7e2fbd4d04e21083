"""Delivery records, failed attempts, failed files, and hourly traffic."""

import hashlib
from enum import StrEnum

from django.db import models
from django.db.models import Q

from deliveries_app.models.apps import App
from deliveries_app.models.watches import AppRepository
from docora.db.fields import BytewiseTextField
from docora.text import visible


class Kind(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


PHASES = (Kind.DELETE, Kind.CREATE, Kind.UPDATE)
"""Every delete is settled before the first create, every create before the first update."""


class DeliveryState(StrEnum):
    ACKNOWLEDGED = "acknowledged"
    UNCONFIRMED = "unconfirmed"
    CLEARED = "cleared"


class Delivery(models.Model):
    """The last notification about one path of one watch, and what the client last acknowledged (`engine.md` §1).

    A row that is not `acknowledged` is *in doubt* and never counts as delivered. An acknowledged delete has no row.
    """

    watch = models.ForeignKey(
        AppRepository,
        on_delete=models.CASCADE,
        related_name="deliveries",
        db_index=False,
        verbose_name="watched repository",
    )
    path = BytewiseTextField()
    source_path = BytewiseTextField(
        blank=True, db_default="", help_text="The file's path in the repository, kept while transforms are in use."
    )
    mode = models.CharField(max_length=6)
    kind = models.CharField(max_length=6, choices=[(kind.value, kind.value) for kind in Kind])
    source_key = models.CharField(  # noqa: DJ001  null means "unknown"
        max_length=128,
        null=True,
        help_text="Blob id and version of the rules that produced the content; empty after an import.",
    )
    sha = models.CharField("SHA-256", max_length=64)
    size = models.PositiveBigIntegerField()
    sequence = models.BigIntegerField("sequence")
    generation = models.BigIntegerField()
    acknowledged = models.BooleanField()
    acknowledged_sha = models.CharField("acknowledged SHA-256", max_length=64, null=True)  # noqa: DJ001  null: never acknowledged
    remark = models.CharField(
        max_length=20, blank=True, db_default="", help_text="A note about the content, such as lfs_pointer."
    )
    attempts = models.PositiveIntegerField("failed attempts", default=0)
    hold_until = models.DateTimeField(
        "on hold until",
        null=True,
        help_text="Not resent before this time, because the client may still be processing it after a timeout.",
    )
    updated_at = models.DateTimeField("last sent")
    # The last success. Null if there was none yet, or if a version of Docora without these columns recorded it. The types
    # have no check constraints: adding one would read millions of rows.
    delivered_at = models.DateTimeField("last acknowledged", null=True, editable=False)
    delivered_status = models.SmallIntegerField(null=True, editable=False)
    delivered_ms = models.IntegerField(null=True, editable=False, help_text="Duration of its requests.")

    class Meta:
        verbose_name_plural = "deliveries"
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["watch", "path"], name="delivery_in_doubt", condition=Q(acknowledged=False)),
            models.Index(fields=["watch", "source_path"], name="delivery_source", condition=~Q(source_path="")),
            models.Index(fields=["watch", "path"], name="delivery_remarked", condition=~Q(remark="")),
            models.Index(fields=["path", "id"], name="delivery_path"),  # for searches across all watches
        ]
        constraints = [
            models.UniqueConstraint(fields=["watch", "path"], name="delivery_unique_path"),
            models.CheckConstraint(condition=Q(kind__in=[kind.value for kind in Kind]), name="delivery_kind_known"),
        ]

    def __str__(self) -> str:
        return visible(self.path)

    @property
    def known_size(self) -> int | None:
        """The size in bytes; None after an import, until the first sync has compared the contents."""
        return None if self.acknowledged and self.source_key is None else self.size

    def state(self, resend_floor: int) -> DeliveryState:
        """Return the state. `resend_floor` is the watch's: a re-sync clears all deliveries of earlier generations."""
        if not self.acknowledged:
            return DeliveryState.UNCONFIRMED
        return DeliveryState.ACKNOWLEDGED if self.generation >= resend_floor else DeliveryState.CLEARED


ATTEMPTS_PER_PATH = 10
"""Failed attempts of one path that are kept: the newest ones."""


class DeliveryAttempt(models.Model):
    """A notification that was sent and not acknowledged, with its request and response.

    Only failures have a row. The last success is in the columns of the `Delivery`, so that recording it costs no row.
    `headers` are those of the request, with masked signatures. Only the beginning of each body is kept, without the app's keys.
    """

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="attempts", db_index=False)
    watch = models.ForeignKey(AppRepository, on_delete=models.CASCADE, related_name="attempts", db_index=False)
    path_digest = models.CharField(max_length=64)
    at = models.DateTimeField()
    event = models.CharField(max_length=6, choices=[(kind.value, kind.value) for kind in Kind])
    cause = models.CharField(max_length=20)
    status_code = models.PositiveSmallIntegerField(null=True)
    message = models.CharField(max_length=500)
    milliseconds = models.PositiveIntegerField()
    headers = models.JSONField()
    request_body = models.TextField()
    response_body = models.TextField()

    class Meta:
        default_permissions = ()
        permissions = [("view_payloads", "Can view request bodies and responses")]
        ordering = ["-pk"]
        indexes = [
            models.Index(fields=["watch", "path_digest", "id"], name="attempt_of_path"),
            models.Index(fields=["app", "id"], name="attempt_of_app"),
            models.Index(fields=["at"], name="attempt_time"),
        ]

    def __str__(self) -> str:
        return f"{self.event}: {self.message}"

    @property
    def run_id(self) -> str:
        return str(self.headers.get("X-Docora-Run-Id", ""))

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    @property
    def result(self) -> str:
        """The status, or the error without its full stop."""
        return f"HTTP {self.status_code}" if self.status_code else self.message.removesuffix(".")


class FailureKind(models.TextChoices):
    FAILED = "failed", "failed"
    SKIPPED = "skipped", "skipped"


class DeliveryFailure(models.Model):
    """A path that could not be delivered or is skipped by rule, with the reason.

    It is identified by the SHA-256 of the path's bytes: skipped paths may be too long to index, or not text.
    """

    watch = models.ForeignKey(AppRepository, on_delete=models.CASCADE, related_name="failures", db_index=False)
    path_digest = models.CharField(max_length=64)
    path = models.TextField(help_text="Shortened if it is too long to be sent.")
    kind = models.CharField(max_length=7, choices=FailureKind, default=FailureKind.FAILED)
    cause = models.CharField(max_length=20)
    status_code = models.PositiveSmallIntegerField(null=True)
    message = models.CharField(max_length=500)
    body = models.CharField(max_length=500, blank=True)
    attempts = models.PositiveIntegerField(default=1)
    fencing_token = models.BigIntegerField(
        default=0, db_default=0, editable=False, help_text="The claim that last listed it."
    )
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        ordering = ["kind", "path"]
        indexes = [models.Index(fields=["watch", "kind"], name="failure_kind")]
        constraints = [
            models.UniqueConstraint(fields=["watch", "path_digest"], name="failure_unique_path"),
            models.CheckConstraint(condition=Q(kind__in=FailureKind.values), name="failure_kind_known"),
        ]

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class HourlyTraffic(models.Model):
    """What was sent to one app in one hour (UTC).

    `milliseconds` is the total time of all `requests`; a large file needs several. `failed` counts every attempt that
    was sent and failed.
    """

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="traffic", db_index=False)
    hour = models.DateTimeField(help_text="Start of the hour.")
    files = models.PositiveBigIntegerField(default=0, help_text="acknowledged")
    bytes = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    requests = models.PositiveBigIntegerField(default=0)
    milliseconds = models.PositiveBigIntegerField(default=0)
    acknowledged_at = models.DateTimeField(null=True, help_text="The last acknowledgement of this hour.")
    acknowledged_by = models.TextField(
        db_default="", help_text="The base URL that acknowledged last. Empty if an earlier version recorded it."
    )

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["hour", "app"], name="traffic_unique_hour")]
        indexes = [models.Index(fields=["app", "hour"], name="traffic_of_app")]

    def __str__(self) -> str:
        return f"{self.app}, {self.hour:%Y-%m-%d %H:%M}"


def path_digest(path: bytes) -> str:
    return hashlib.sha256(path).hexdigest()
