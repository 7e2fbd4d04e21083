"""Sync runs, bulk operations and notices."""

from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone
from django.utils.functional import cached_property

from deliveries_app.models.apps import App
from deliveries_app.models.watches import AppRepository, Reason
from docora.text import new_id


def new_run_id() -> str:
    return new_id("run")


def new_operation_id() -> str:
    return new_id("bulk", 16)


class Result(models.TextChoices):
    """Where a run or a bulk operation is, or how it ended, as pages and exports show it. Only an operation can be held."""

    RUNNING = "running", "In progress"
    HELD = "held", "Held"
    SUCCEEDED = "succeeded", "Succeeded"
    PARTLY_FAILED = "partly_failed", "Partly failed"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"
    SUPERSEDED = "superseded", "Superseded"


class OperationKind(models.TextChoices):
    RESYNC = "resync", "re-sync"
    RETRY = "retry", "retry"
    RESEND = "resend", "resend"


class BulkOperation(models.Model):
    """A request to sync several watches, each with its own run. It is kept when its app or user is deleted.

    With `canary` or `pace` it is gradual (`engine.md` §14): its watches are released one after the other, and only a released
    one gets a run. `total` counts all of them.
    """

    operation_id = models.CharField(max_length=50, unique=True, default=new_operation_id, editable=False)
    kind = models.CharField(max_length=6, choices=OperationKind, default=OperationKind.RESYNC)
    title = models.CharField(max_length=200, help_text="What was requested.")
    app = models.ForeignKey(App, null=True, blank=True, on_delete=models.SET_NULL, related_name="operations")
    requested_by = models.CharField(max_length=150)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    reason = models.CharField(
        max_length=200, blank=True, default="", db_default="", help_text="Why, in the requester's words."
    )
    total = models.PositiveIntegerField(help_text="repositories")
    canary = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Whether the other repositories of each app wait until its first one has succeeded.",
    )
    pace = models.PositiveIntegerField(null=True, blank=True, help_text="Repositories released per minute, at most.")
    next_release_at = models.DateTimeField(null=True, blank=True, help_text="With a pace: no release before this time.")
    held_at = models.DateTimeField(null=True, blank=True, help_text="Set while a person has to continue or cancel.")
    held_reason = models.TextField(blank=True, default="", db_default="", help_text="Why it was held last.")
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    cancelled_by = models.CharField(max_length=150, blank=True)

    class Meta:
        ordering = ["-created_at", "-pk"]
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="operation_newest"),
            models.Index(fields=["created_at"], name="operation_open", condition=Q(ended_at=None)),
        ]
        constraints = [models.CheckConstraint(condition=Q(kind__in=OperationKind.values), name="operation_kind_known")]

    def __str__(self) -> str:
        return self.title

    @property
    def is_retry(self) -> bool:
        return self.kind == OperationKind.RETRY

    @property
    def is_gradual(self) -> bool:
        return self.canary or self.pace is not None

    @property
    def is_held(self) -> bool:
        return self.held_at is not None and self.ended_at is None

    @property
    def rollout(self) -> str:
        """How its repositories are released, for pages and logs; empty if all are released at once."""
        parts = ["one repository per app first"] if self.canary else []
        parts += [f"at most {self.pace:,} per minute"] if self.pace is not None else []
        return ", ".join(parts)

    def result_of(self, *, succeeded: int, failed: int, superseded: int) -> Result:
        """Return how the operation ended, from its runs by outcome. Runs of removed watches don't count."""
        if self.ended_at is None:
            return Result.HELD if self.held_at else Result.RUNNING
        if self.cancelled_at is not None:
            return Result.CANCELLED
        if failed:
            return Result.PARTLY_FAILED if succeeded else Result.FAILED
        if succeeded:
            return Result.SUCCEEDED
        return Result.SUPERSEDED if superseded else Result.CANCELLED


class Outcome(models.TextChoices):
    SUCCEEDED = "succeeded", "succeeded"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"
    SUPERSEDED = "superseded", "superseded by a later request"
    ENDED = "ended", "cancelled: no longer watched"
    PAUSED = "paused", "failed: the app was paused"

    @property
    def result(self) -> Result:
        return {Outcome.ENDED: Result.CANCELLED, Outcome.PAUSED: Result.FAILED}.get(self) or Result(self.value)

    @classmethod
    def with_result(cls, result: Result) -> list["Outcome"]:
        return [outcome for outcome in cls if outcome.result == result]


SWEEP = "sweep"
"""`requested_by` of runs that Docora itself started."""


def is_superseded() -> Q:
    """Match open runs that a later open request replaces. They continue if that one is cancelled."""
    later = SyncRun.objects.filter(watch=OuterRef("watch"), outcome="", generation__gt=OuterRef("generation"))
    return Q(outcome="") & Q(Exists(later))


class SyncRunQuerySet(models.QuerySet["SyncRun"]):
    def with_result(self) -> Self:
        """Read with each run whether it `is_superseded`, which its result depends on."""
        return self.annotate(**{"is_superseded": is_superseded()})


def is_in_progress() -> Q:
    """Match open runs that no later request has superseded."""
    return Q(outcome="") & ~is_superseded()


class SyncRun(models.Model):
    """One request to sync one watch, or one change found, including its retries and their outcome.

    A run is open while `outcome` is empty. A failed retry that the sweep started is opened again for its next attempt at the same
    files. Names are copied, so that the record stays readable when the watch is deleted. `attempts` counts the attempts that
    had a plan, without those that were only interrupted.
    """

    run_id = models.CharField(max_length=50, unique=True, default=new_run_id, editable=False)
    watch = models.ForeignKey(AppRepository, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs")
    app_name = models.CharField("app", max_length=100)
    repository_name = models.CharField("repository", max_length=511)
    operation = models.ForeignKey(BulkOperation, null=True, blank=True, on_delete=models.SET_NULL, related_name="runs")
    reason = models.CharField(max_length=10, choices=Reason)
    is_resend = models.BooleanField(
        default=False, db_default=False, help_text="Whether it was requested for chosen files. The reason is `retry`."
    )
    requested_by = models.CharField(max_length=150)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    generation = models.BigIntegerField()
    attempts = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=10, choices=Outcome, blank=True, default="")
    commit_sha = models.CharField(max_length=64, blank=True, default="")
    files_total = models.PositiveBigIntegerField(default=0)
    files_done = models.PositiveBigIntegerField(default=0, help_text="acknowledged by the client")
    files_failed = models.PositiveBigIntegerField(default=0)
    files_skipped = models.PositiveBigIntegerField(default=0)
    left_out = models.JSONField(
        default=dict, help_text="Cause → number of files in the tree that were not sent, or not sent unchanged."
    )
    bytes_total = models.PositiveBigIntegerField(default=0)
    bytes_done = models.PositiveBigIntegerField(default=0)
    error = models.TextField(blank=True, default="")

    objects = SyncRunQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-pk"]
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="run_newest"),
            models.Index(fields=["watch", "generation"], name="run_open", condition=Q(outcome="")),
            models.Index(fields=["watch", "-created_at"], name="run_of_watch"),
            models.Index(fields=["watch", "-ended_at"], name="run_last"),
            models.Index(fields=["operation", "outcome"], name="run_of_operation"),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(outcome__in=["", *Outcome.values]), name="run_outcome_known"),
            models.CheckConstraint(
                condition=Q(outcome="", ended_at=None) | (~Q(outcome="") & Q(ended_at__isnull=False)),
                name="run_ends_with_outcome",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.repository_name} → {self.app_name} ({self.reason_label})"

    @property
    def reason_label(self) -> str:
        """Why the run happens, as pages and exports show it. On the wire, the reason of a resend is `retry`."""
        return str(OperationKind.RESEND.label if self.is_resend else self.get_reason_display())

    @property
    def requester(self) -> str:
        """Who requested the run, for pages. Runs for changes, first syncs and retries that Docora starts name the sweep."""
        return "Docora" if self.requested_by == SWEEP else self.requested_by

    @property
    def result(self) -> Result:
        """How the run ended. It partly failed if the client has acknowledged files and others failed.

        An open run is in progress, or superseded while a later request is in progress in its place.
        """
        if not self.outcome:
            return Result.SUPERSEDED if self.is_superseded else Result.RUNNING
        result = Outcome(self.outcome).result
        is_partial = result == Result.FAILED and self.files_done and self.files_failed
        return Result.PARTLY_FAILED if is_partial else result

    @cached_property
    def is_superseded(self) -> bool:
        """Whether the run is open and `is_superseded()`. Lists read it `with_result`; otherwise this is a query."""
        return SyncRun.objects.filter(is_superseded(), pk=self.pk).exists()

    @property
    def is_resync(self) -> bool:
        return self.reason == Reason.RESYNC

    @property
    def is_retry(self) -> bool:
        return self.reason == Reason.RETRY


class PendingRelease(models.Model):
    """A watch of an open gradual operation that is not released yet. Nothing about the watch itself has changed so far.

    Lower positions are released first. `files` and `size` are estimates, which the run starts with.
    """

    operation = models.ForeignKey(BulkOperation, on_delete=models.CASCADE, related_name="pending")
    watch = models.ForeignKey(AppRepository, on_delete=models.CASCADE, related_name="pending_releases")
    position = models.PositiveIntegerField()
    files = models.PositiveBigIntegerField(default=0)
    size = models.PositiveBigIntegerField(default=0)

    class Meta:
        ordering = ["operation", "position"]
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["operation", "watch"], name="pending_release_once")]
        indexes = [models.Index(fields=["operation", "position"], name="pending_release_order")]

    def __str__(self) -> str:
        return f"{self.watch}, not released yet"


class CanaryState(models.TextChoices):
    """`PASSED` and `CONTINUED` release the app's other repositories, `HELD` waits for a person."""

    WAITING = "waiting", "not released yet"
    RUNNING = "running", "in progress"
    PASSED = "passed", "succeeded"
    HELD = "held", "held"
    CONTINUED = "continued", "continued"


class Canary(models.Model):
    """The state of the first repository of one app in an open operation. `run` is its run, once it is released."""

    operation = models.ForeignKey(BulkOperation, on_delete=models.CASCADE, related_name="canaries")
    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="+")
    run = models.ForeignKey(SyncRun, null=True, on_delete=models.SET_NULL, related_name="+")
    state = models.CharField(max_length=9, choices=CanaryState, default=CanaryState.WAITING)
    since = models.DateTimeField(null=True, help_text="When it was released, or when its app was last seen paused.")
    reason = models.TextField(blank=True, default="", help_text="Why it is held.")

    class Meta:
        ordering = ["operation", "pk"]
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(fields=["operation", "app"], name="canary_of_app"),
            models.CheckConstraint(condition=Q(state__in=CanaryState.values), name="canary_state_known"),
        ]

    def __str__(self) -> str:
        return f"Canary of {self.app}: {self.get_state_display()}"


class NoticeKind(models.TextChoices):
    """Notifications that are not about one file. The value is the endpoint's path."""

    SYNC_FAILED = "sync_failed", "sync failed"
    SYNC_COMPLETED = "sync_completed", "sync completed"


class Notice(models.Model):
    """A pending notification that is not about one file. Its row is deleted once it is acknowledged or given up.

    `fields` holds the fields of its body, without the timestamp, as JSON text, because clients verify bytes and a JSON column
    would lose the order. `sequence` is assigned before the first attempt and kept for every retry.
    """

    watch = models.ForeignKey(AppRepository, on_delete=models.CASCADE, related_name="notices")
    kind = models.CharField(max_length=14, choices=NoticeKind)
    fields = models.TextField()
    sequence = models.BigIntegerField("sequence", null=True)
    generation = models.BigIntegerField()
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField(default=timezone.now)
    last_error = models.CharField(max_length=500, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["due_at"], name="notice_due")]
        constraints = [models.CheckConstraint(condition=Q(kind__in=NoticeKind.values), name="notice_kind_known")]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} to {self.watch}"


class Queue(models.Model):
    """Permissions for the job queue, which is in Redis. This model has no table."""

    class Meta:
        managed = False
        default_permissions = ()
        verbose_name_plural = "queue"  # there is only one
        permissions = [
            ("view_queue", "Can view the queue"),
            ("control_queue", "Can cancel syncs and pause all syncing"),
        ]

    def __str__(self) -> str:
        return "Queue"
