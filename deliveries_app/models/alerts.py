"""Alerts, and what each channel has sent (`deliveries_app.monitoring.alerts`)."""

from django.db import models
from django.db.models import Q
from django.utils import timezone


class AlertKind(models.TextChoices):
    """What is wrong. The alert webhook sends the value."""

    FAILING = "failing", "watched repository is failing"
    APP_PAUSED = "app_paused", "app is paused"
    ENDPOINT_DOWN = "endpoint_down", "endpoint is down"
    CIRCUIT_OPEN = "circuit_open", "circuit is open"
    GIT_HOST_DOWN = "git_host_down", "git host is down"
    SWEEP_LATE = "sweep_late", "sweep is late"
    NO_WORKER = "no_worker", "no worker is running"
    REDIS_DOWN = "redis_down", "Redis is down"
    DISK = "disk", "disk is almost full or not writable"


class Alert(models.Model):
    """A problem that exists, or existed until `ended_at`.

    `subject` is the primary key of the watch, app, repository or host outage, or 0 for Docora itself. It is not a foreign
    key: the end is reported even if the subject has been deleted, using the `name` and `cause` kept here. `opened` and
    `closed` are the numbers of the rounds that found the beginning and the end. While `opened` is null, the problem is not
    confirmed yet.
    """

    kind = models.CharField(max_length=14, choices=AlertKind)
    subject = models.BigIntegerField(default=0)
    name = models.CharField(max_length=620, blank=True, default="")
    cause = models.CharField(max_length=14, blank=True, default="", help_text="The root cause of the failure.")
    since = models.DateTimeField(default=timezone.now)
    opened = models.BigIntegerField(null=True)
    closed = models.BigIntegerField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ()
        indexes = [
            models.Index(fields=["opened"], name="alert_opened", condition=Q(ended_at=None)),
            models.Index(fields=["closed"], name="alert_closed", condition=Q(ended_at__isnull=False)),
            models.Index(fields=["ended_at"], name="alert_ended", condition=Q(ended_at__isnull=False)),
        ]
        constraints = [
            models.UniqueConstraint(fields=["kind", "subject"], condition=Q(ended_at=None), name="alert_open_once"),
            models.CheckConstraint(condition=Q(kind__in=AlertKind.values), name="alert_kind_known"),
            models.CheckConstraint(
                condition=Q(closed=None, ended_at=None)
                | Q(opened__isnull=False, closed__isnull=False, ended_at__isnull=False),
                name="alert_ends_after_it_began",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()}: {self.name}" if self.name else self.get_kind_display()


class AlertRound(models.Model):
    """The last round of detection: when it ran, and the number of the last round in which something began or ended.

    There is one row. A round locks it, so that rounds run one after another and their numbers appear in order.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    number = models.BigIntegerField(default=0)
    detected_at = models.DateTimeField(db_column="looked_at")

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="alert_round_is_one")]

    def __str__(self) -> str:
        return f"Round {self.number}"


class ChannelName(models.TextChoices):
    WEBHOOK = "webhook", "webhook"
    EMAIL = "email", "email"


class AlertChannel(models.Model):
    """What a channel has sent: the last rounds whose beginnings (`reported_opened`) and ends (`reported_closed`) it reported.

    Nothing is sent before `due_at`, which is set while a process is sending, after a failure, and to collect further alerts.
    """

    name = models.CharField(max_length=7, choices=ChannelName, unique=True)
    reported_opened = models.BigIntegerField(default=0, db_column="told_begun")
    reported_closed = models.BigIntegerField(default=0, db_column="told_ended")
    reminded_at = models.DateTimeField(default=timezone.now)
    due_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0, help_text="Consecutive failed attempts.")
    last_error = models.CharField(max_length=500, blank=True, default="")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(name__in=ChannelName.values), name="alert_channel_known")]

    def __str__(self) -> str:
        return f"Alerts by {self.get_name_display()}"
