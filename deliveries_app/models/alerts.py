"""What an administrator is told about outside of the admin, and how far each channel has been told (`deliveries_app.monitoring.alerts`)."""

from django.db import models
from django.db.models import Q
from django.utils import timezone


class AlertKind(models.TextChoices):
    """What is wrong. The value travels in the webhook's body."""

    FAILING = "failing", "watched repository fails"
    APP_PAUSED = "app_paused", "app was paused"
    ENDPOINT_DOWN = "endpoint_down", "endpoint is down"
    CIRCUIT_OPEN = "circuit_open", "circuit is open"
    SWEEP_LATE = "sweep_late", "sweep is late"
    NO_WORKER = "no_worker", "no worker is alive"
    REDIS_DOWN = "redis_down", "Redis does not answer"


class Alert(models.Model):
    """Something that is wrong, or was until `ended_at`.

    `subject` is the key of the watched repository, app or repository that `kind` speaks of, 0 where it is Docora itself;
    no foreign key, for the end is told too when the subject is gone, and then by the `name` and `cause` kept here.
    `opened` and `closed` are the rounds that found it; without `opened` it was noticed and is not certain yet.
    """

    kind = models.CharField(max_length=14, choices=AlertKind)
    subject = models.BigIntegerField(default=0)
    name = models.CharField(max_length=620, blank=True, default="")
    cause = models.CharField(max_length=14, blank=True, default="", help_text="The root cause of what fails.")
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
    """One row: when somebody looked last, and the number of the last round in which something began or ended.

    Whoever looks holds this row, so that rounds come one after the other and their numbers are seen in order."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    number = models.BigIntegerField(default=0)
    looked_at = models.DateTimeField()

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="alert_round_is_one")]

    def __str__(self) -> str:
        return f"Round {self.number}"


class ChannelName(models.TextChoices):
    WEBHOOK = "webhook", "webhook"
    EMAIL = "email", "e-mail"


class AlertChannel(models.Model):
    """How far a channel has been told: up to which round of beginnings, and of ends. `due_at`: nothing is sent earlier,
    be it that somebody is sending, that it failed, or that what happens next shall gather first."""

    name = models.CharField(max_length=7, choices=ChannelName, unique=True)
    told_begun = models.BigIntegerField(default=0)
    told_ended = models.BigIntegerField(default=0)
    reminded_at = models.DateTimeField(default=timezone.now)
    due_at = models.DateTimeField(null=True)
    attempts = models.PositiveIntegerField(default=0, help_text="That failed in a row.")
    last_error = models.CharField(max_length=500, blank=True, default="")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(name__in=ChannelName.values), name="alert_channel_known")]

    def __str__(self) -> str:
        return f"Alerts by {self.get_name_display()}"
