"""Watches (which repository an app watches, and the state of its syncs) and the pause of all syncing."""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Subquery, Sum, Value, When
from django.db.models.functions import Coalesce, Least, Now
from django.utils import timezone

from deliveries_app.models.apps import APP_SECRETS, App
from deliveries_app.models.root_causes import RootCause
from deliveries_app.models.watch_state import StateDetail, WatchState, details_of
from docora.db.clock import from_now
from docora.db.locks import lock_rows
from docora.security.crypto import EncryptedTextField
from repositories_app.models import GitHubApp, Repository, Snapshot
from repositories_app.services import host_is_down, host_retry_at, some_host_is_down

MAX_SHARED_CRASHES = 2  # how many shared processes may die while syncing a watch before it gets its own process
SLOT_REQUEST_SECONDS = 1.0  # how often one watch of an app without free slots asks for one


def new_watch_id() -> str:
    return secrets.token_hex(8)


class Status(models.TextChoices):
    PENDING = "pending_snapshot", "pending"
    SCANNING = "scanning", "syncing"
    SYNCED = "synced", "synced"
    FAILED = "failed", "failed"


class Reason(models.TextChoices):
    """Why a run happens. Sent as `X-Docora-Reason`."""

    INITIAL = "initial", "first sync"
    CHANGE = "change", "change"
    RESYNC = "resync", "re-sync"
    RETRY = "retry", "retry"


class SyncPause(models.Model):
    """While the single row of this table exists, all syncing is paused and due syncs wait."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    since = models.DateTimeField(default=timezone.now)
    paused_by = models.CharField(max_length=150)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="pause_is_one")]

    def __str__(self) -> str:
        return f"All syncing paused by {self.paused_by}"


def is_leased() -> Q:
    """Match watches that a worker owns now. A lease far in the future was written by a wrong clock and does not count."""
    limit = timedelta(seconds=2 * settings.LEASE_SECONDS)
    return Q(lease_until__gt=Now(), lease_until__lte=Now() + limit)


def is_syncing() -> Q:
    """Match watches that a worker is syncing now. After a cancel, the worker keeps its lease until its requests have ended."""
    return Q(status=Status.SCANNING) & is_leased()


def is_free() -> Q:
    """Match watches that a worker can claim: the opposite of `is_leased`."""
    limit = timedelta(seconds=2 * settings.LEASE_SECONDS)
    return Q(lease_until=None) | Q(lease_until__lte=Now()) | Q(lease_until__gt=Now() + limit)


def app_is_full() -> Q:
    """Match watches whose app has no free slot, or is down and already being probed by one watch."""
    holders = AppRepository.objects.leased().order_by().values("app_id").annotate(taken=Sum("lease_slots"))
    allowed = Least(Coalesce("app__pace_slots", "app__max_in_flight"), "app__max_in_flight")
    full = holders.filter(Q(taken__gte=allowed) | Q(app__down_count__gt=0))
    return Q(app_id__in=full.values("app_id"))


def is_unpaused() -> Q:
    """Match watches whose import is complete, unless the watch, its app or all syncing is paused."""
    return Q(~Exists(SyncPause.objects.all()), app__paused=False, paused_at=None, arriving=False)


def can_sync() -> Q:
    """Match watches that can sync now: no pause, incomplete import, endpoint cooldown or git host outage.

    With an open circuit, an outage doesn't count: there may be a `sync_failed` to send, which needs no git host.
    """
    # Usually no host is down: then no repository is read.
    held = Repository.objects.filter(host_is_down("canonical_url"), pk=OuterRef("repository"))
    held = held.exclude(circuit_open_until__gt=Now())
    return is_unpaused() & has_no_cooldown() & (~Q(some_host_is_down()) | ~Q(Exists(held)))


def waits_for_circuit() -> Q:
    """Match watches that wait until the open circuit of their repository lets an attempt through.

    The first attempt of a request does not wait: it is the circuit's probe. `Attempt._circuit_seconds` decides by the same rule.
    """
    requests = Q(runs__outcome="", runs__reason__in=[reason for reason in Reason if reason != Reason.CHANGE])
    is_requested = Exists(AppRepository.objects.filter(requests, pk=OuterRef("pk")).order_by())
    return Q(repository__circuit_open_until__gt=Now()) & (Q(retry_count__gt=0) | ~Q(is_requested))


def has_no_cooldown() -> Q:
    return Q(app__cooldown_until=None) | Q(app__cooldown_until__lte=Now())


SECRETS = ("github_token", "push_secret", *(f"app__{name}" for name in APP_SECRETS))
"""The encrypted columns of a watch and its app. Decrypting them for the 50 rows of a page takes longer than the query."""


WATCH_ORDER = ["app__name", "repository__owner", "repository__name", "pk"]


class AppRepositoryQuerySet(models.QuerySet["AppRepository"]):
    """Queries about leases and due times use the database's clock, because workers' clocks may differ."""

    def select_for_update(
        self, nowait: bool = False, skip_locked: bool = False, of: Sequence[str] = ("self",), no_key: bool = False
    ) -> Self:
        """Lock the watches as Django does, but not also the apps and repositories that are read with them.

        All code locks an app before its watches, so locking it after them could deadlock. The default order, which needs
        both, is dropped.
        """
        rows = super().select_for_update(nowait, skip_locked, of, no_key)
        return rows if self.query.order_by else rows.order_by()

    def alive(self) -> Self:
        """Return watches that are not being removed, of apps that are not being removed."""
        return self.filter(ended_at=None, app__ended_at=None)

    def leased(self) -> Self:
        return self.filter(is_leased())

    def free(self) -> Self:
        return self.filter(is_free())

    def unpaused(self) -> Self:
        return self.filter(is_unpaused())

    def due(self) -> Self:
        """Return watches that are due and can sync now."""
        return self.alive().filter(can_sync(), next_sync_at__lte=Now())

    def startable(self) -> Self:
        """Leave out an app's watches if it has no free slot and one of its watches has just asked for one.

        Running watches then share their slots, so one request per second and app is enough.
        """
        asked = AppRepository.objects.filter(slots_requested_at__gt=from_now(-SLOT_REQUEST_SECONDS))
        return self.exclude(app_is_full(), app_id__in=asked.values("app_id"))

    def scheduled(self) -> Self:
        """Return watches that are due later and that no worker owns."""
        return self.alive().free().filter(next_sync_at__gt=Now())

    def failing(self) -> Self:
        """Return watches whose last attempt failed: being retried, or waiting for the next rescan."""
        return self.alive().filter(failing_since__isnull=False)

    def count_by(self, field: str) -> Coalesce:
        """Return an expression that counts these watches for each row that `field` refers to.

        It is a subquery. Unlike a join, it costs nothing in queries that do not need the count.
        """
        counted = self.filter(**{field: OuterRef("pk")}).order_by().values(field).annotate(count=Count("pk"))
        return Coalesce(Subquery(counted.values("count")), 0)

    def with_state(self) -> Self:
        """Annotate `state_detail`, from which each watch derives its `state`, and `host_retry_at`.

        The first condition that applies decides. `host_retry_at` is when the git host is tried again, if it is down.
        """
        conditions = {
            StateDetail.SYNCING: is_syncing(),
            StateDetail.ALL_PAUSED: Q(Exists(SyncPause.objects.all())),
            StateDetail.APP_PAUSED: Q(app__paused=True),
            StateDetail.WATCH_PAUSED: Q(paused_at__isnull=False),
            StateDetail.IMPORTING: Q(arriving=True),
            StateDetail.UP_TO_DATE: Q(status=Status.SYNCED) & (Q(next_sync_at=None) | Q(next_sync_at__gt=Now())),
            # Like one that is up to date, it waits only for a check.
            StateDetail.WAITS_FOR_COMMIT: Q(status=Status.PENDING, next_sync_at=None),
            StateDetail.CIRCUIT_OPEN: waits_for_circuit(),
            StateDetail.HOST_DOWN: Q(host_is_down("repository__canonical_url")),
            StateDetail.COOLDOWN: Q(app__cooldown_until__gt=Now()),
            StateDetail.FAILED: Q(status=Status.FAILED),
            StateDetail.RETRYING: Q(failing_since__isnull=False),
            StateDetail.SCHEDULED: Q(next_sync_at__gt=Now()),
            StateDetail.WAITS_FOR_SLOT: app_is_full(),
        }
        whens = [When(condition, then=Value(detail.value)) for detail, condition in conditions.items()]
        detail = Case(*whens, default=Value(StateDetail.WAITS_FOR_WORKER.value), output_field=models.CharField())
        return self.annotate(state_detail=detail, host_retry_at=host_retry_at("repository__canonical_url"))

    def with_sizes(self) -> Self:
        """Annotate `files` and `size`: the watch's own, or before its first sync, those of the newest snapshot or None.

        The snapshot of a private repository isn't used: it comes from other apps' syncs, and the runs of this watch, whose app
        may not be able to read the repository, begin with these numbers.
        """
        snapshots = Snapshot.objects.filter(repository=OuterRef("repository"), repository__is_private=False)
        newest = snapshots.order_by("-created_at", "-pk")
        is_known = Q(tree_files__gt=0) | ~Q(last_commit="")  # it may have none, if all are excluded
        return self.annotate(
            files=Case(
                When(is_known, then=F("tree_files")),
                default=Subquery(newest.values("file_count")[:1]),
            ),
            size=Case(
                When(is_known, then=F("tree_bytes")),
                default=Subquery(newest.values("total_bytes")[:1]),
            ),
        )

    def for_list(self) -> Self:
        """Read apps and repositories with the watches, but no secrets."""
        return self.select_related("app", "repository").defer(*SECRETS)

    def for_pages(self) -> Self:
        """Return the watches that pages show, with all that they show of them."""
        return self.alive().with_state().for_list()

    def in_state(self, state: str) -> Self:
        """Return the watches `with_state` that are in this `WatchState`."""
        found = self.filter(state_detail__in=details_of(state))
        # An index finds these few. The state alone would be computed for every watch.
        return found.filter(is_syncing()) if state == WatchState.SYNCING else found

    def lock(self) -> list[int]:
        """Lock these watches until the transaction ends, as `lock_rows` does, and return their primary keys."""
        return lock_rows(self)

    def watch_ids(self) -> set[str]:
        return set(self.values_list("watch_id", flat=True))


class AppRepository(models.Model):
    """A watch: one repository watched by one app. `engine.md` explains the numbers.

    - `generation` fences off workers whose request was superseded.
    - `resend_floor` is the lowest generation whose delivery records count. It is never below `lowest_floor`.
    - `request_count` counts requests to sync; `claimed_request_count` is its value at the last claim.
    - `fencing_token` is the number of the last claim.
    - `sequence_high` is the highest notification number reserved so far.
    """

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="watches")
    repository = models.ForeignKey(Repository, on_delete=models.PROTECT, related_name="watches")
    watch_id = models.CharField(max_length=16, unique=True, default=new_watch_id, editable=False)
    github_url = models.CharField("URL", max_length=2048, help_text="As entered by the app.")
    github_token = EncryptedTextField("token", blank=True, default="")
    ref = models.CharField(
        "branch or tag",
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text="As main, v1.2, refs/heads/main or refs/tags/v1.2. Empty follows the default branch.",
    )
    push_secret = EncryptedTextField(
        "push hook secret", blank=True, default="", help_text="The git host signs push hooks with it."
    )
    ignore_patterns = models.TextField(
        blank=True,
        default="",
        help_text="One pattern per line, as in .gitignore. Matching files are not sent to this app.",
    )
    include_patterns = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="The app's own choice: only matching files are sent. Empty sends all files.",
    )
    exclude_patterns = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="The app's own choice: matching files are not sent.",
    )
    status = models.CharField(max_length=20, choices=Status, default=Status.PENDING, editable=False)
    paused_at = models.DateTimeField(
        null=True, editable=False, help_text="While set, nothing is checked or sent. Requests are recorded and wait."
    )
    paused_by = models.CharField(max_length=150, blank=True, default="", db_default="", editable=False)

    generation = models.BigIntegerField(default=1, editable=False)
    resend_floor = models.BigIntegerField(default=1, editable=False)
    lowest_floor = models.BigIntegerField(
        default=1,
        db_default=1,
        editable=False,
        help_text="The generation in which the repository was watched again. The app may have dropped its copy before that.",
    )
    request_count = models.BigIntegerField(default=1, editable=False)
    next_sync_at = models.DateTimeField(null=True, blank=True, default=timezone.now, editable=False)
    next_check_at = models.DateTimeField(default=timezone.now, editable=False)
    retry_count = models.PositiveIntegerField(default=0, editable=False)
    last_error = models.TextField(blank=True, default="", editable=False)
    last_error_cause = models.CharField(max_length=20, blank=True, default="", editable=False)
    root_cause = models.CharField(max_length=14, choices=RootCause, blank=True, default="", editable=False)
    last_status_code = models.PositiveSmallIntegerField("status code", null=True, blank=True, editable=False)
    last_response = models.CharField(
        "response", max_length=500, blank=True, default="", editable=False, help_text="Start of the response."
    )
    failing_since = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Time of the first failure since the last success."
    )
    last_scanned_at = models.DateTimeField("last checked", null=True, blank=True, editable=False)
    moved_at = models.DateTimeField(
        "last changed", null=True, blank=True, editable=False, help_text="When a new HEAD was last found."
    )
    seen_commit = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="HEAD at the last attempt. Empty if it couldn't be read.",
    )
    pushed_at = models.DateTimeField(
        null=True, editable=False, help_text="When a push hook last arrived. HEAD may be read again shortly afterwards."
    )
    last_synced_at = models.DateTimeField(
        "last complete sync",
        null=True,
        blank=True,
        editable=False,
        help_text="When the app had last acknowledged everything. A sync with failing files doesn't count.",
    )
    last_commit = models.CharField(max_length=64, blank=True, default="", editable=False)
    branch = models.CharField(max_length=255, blank=True, default="", editable=False)
    base_commit = models.CharField(max_length=64, blank=True, default="", editable=False)
    base_rules = models.CharField(max_length=64, blank=True, default="", editable=False)
    tree_files = models.PositiveBigIntegerField("files", default=0, editable=False)
    tree_bytes = models.PositiveBigIntegerField("bytes", default=0, editable=False)
    files_failing = models.PositiveBigIntegerField(default=0, editable=False)
    deletes_failing = models.PositiveBigIntegerField(
        default=0, db_default=0, editable=False, help_text="How many of the failing files are no longer in the tree."
    )
    left_out = models.JSONField(
        default=dict,
        editable=False,
        help_text="Cause → number of files in the tree that are not sent, or not sent unchanged.",
    )

    fencing_token = models.BigIntegerField(default=0, editable=False)
    claimed_request_count = models.BigIntegerField(default=0, editable=False)
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    lease_slots = models.PositiveSmallIntegerField(default=0, editable=False)
    lease_owner = models.CharField(max_length=100, blank=True, default="", editable=False)
    lease_process = models.CharField(
        max_length=200, default="", db_default="", editable=False, help_text="The process that holds the lease."
    )
    target = models.CharField(
        max_length=64,
        default="",
        db_default="",
        editable=False,
        help_text="A hash of what the last attempt sent: the commit, the generation and the rules.",
    )
    doubt_until = models.DateTimeField(
        null=True,
        editable=False,
        help_text="Until then, the app may still be processing requests whose response was lost. Only the same target is sent.",
    )
    slots_requested_at = models.DateTimeField(null=True, blank=True, editable=False)
    sequence_high = models.BigIntegerField(default=0, editable=False)
    crash_count = models.PositiveSmallIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="Shared processes that died while syncing this watch, since its last finished attempt.",
    )

    arriving = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="Its delivery records are being imported. Nothing is checked or sent until the import is complete.",
    )
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    # Only rows that are read `with_state` have these.
    state_detail: str
    host_retry_at: datetime | None

    objects = AppRepositoryQuerySet.as_manager()

    class Meta:
        verbose_name = "watched repository"
        verbose_name_plural = "watched repositories"
        ordering = WATCH_ORDER
        permissions = [
            ("resync_apprepository", "Can re-sync a watched repository"),
            ("retry_apprepository", "Can retry failed syncs and reset circuits"),
        ]
        indexes = [
            models.Index(fields=["next_sync_at"], name="watch_due", condition=Q(ended_at=None)),
            models.Index(fields=["next_check_at"], name="watch_check", condition=Q(ended_at=None)),
            models.Index(fields=["lease_until"], name="watch_leased", condition=Q(lease_until__isnull=False)),
            # Each run of an app checks several times a second whether one of its watches asks for a slot. Usually none does.
            models.Index(fields=["app"], name="watch_asking", condition=Q(slots_requested_at__isnull=False)),
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
        """The id of the watch's RQ job. It only avoids duplicate jobs; the lease decides which worker syncs."""
        return f"{self.app.app_id}-{self.repository.repository_id}"

    @property
    def github_app(self) -> GitHubApp | None:
        """The GitHub App that reads the repository, unless the watch has a token of its own."""
        return self.app.github_app_for(self.repository.canonical_url, self.github_token)

    @property
    def needs_own_process(self) -> bool:
        """Whether the next attempt must run alone in its process, because two shared processes have died."""
        return self.crash_count + (self.lease_until is not None) >= MAX_SHARED_CRASHES

    @property
    def is_counted(self) -> bool:
        """Whether the files of a commit were counted. Before that, `tree_files` is 0 although the number is unknown."""
        return self.tree_files > 0 or self.last_commit != ""

    @property
    def files_delivered(self) -> int:
        """Number of files in the tree that the app holds, as of the last complete plan."""
        return max(0, self.tree_files - max(0, self.files_failing - self.deletes_failing))

    @property
    def files_undelivered(self) -> int | None:
        """Number of files that the last attempt of a failing watch couldn't deliver; None if it didn't try every file."""
        return self.files_failing or None if self.base_commit else None

    @property
    def waits_for_first_commit(self) -> bool:
        """Whether the repository had no commit when it was last read, or its records are being imported.

        Anything else that is pending has a due time.
        """
        return self.status == Status.PENDING and self.next_sync_at is None and self.ended_at is None

    @property
    def waits_until(self) -> datetime | None:
        """When the hold of a watch that was read `with_state` ends, or when it is retried; None in any other state."""
        match self.detail:
            case StateDetail.COOLDOWN:
                return self.app.cooldown_until
            case StateDetail.CIRCUIT_OPEN:
                return self.repository.circuit_open_until
            case StateDetail.HOST_DOWN:
                return self.host_retry_at
            case StateDetail.RETRYING:
                return self.next_sync_at
        return None

    @property
    def detail(self) -> StateDetail:
        """The state, and what the watch is waiting for. The watch must have been read `with_state`."""
        return StateDetail(self.state_detail)

    @property
    def state(self) -> WatchState:
        """The watch must have been read `with_state`."""
        return self.detail.state

    @property
    def is_active(self) -> bool:
        """Whether the watch is syncing or waiting to, so that pages should poll it."""
        if self.status == Status.SYNCED:  # a sync may have been requested since
            return self.next_sync_at is not None and self.next_sync_at <= timezone.now()
        return self.status in {Status.PENDING, Status.SCANNING} and not self.waits_for_first_commit

    @property
    def is_syncing(self) -> bool:
        """Whether a worker is syncing it. The watch must have been read `with_state`."""
        return self.state == WatchState.SYNCING

    @property
    def is_failing(self) -> bool:
        return self.failing_since is not None

    @property
    def is_paused(self) -> bool:
        """Whether the watch itself is paused. Its app or all syncing may be paused as well."""
        return self.paused_at is not None


class FailedSync(AppRepository):
    """The failing watches, as a separate list in the admin."""

    class Meta:
        proxy = True
        default_permissions = ()  # the permission to view watched repositories covers these
        verbose_name = "failed sync"
        verbose_name_plural = "failed syncs"


class Imported(models.Model):
    """An app or watch that an import took over or found here, by its public ids. An empty `repository_id` means the app itself.

    The row is kept when the app or watch is deleted, so that a repeated import does not bring it back.
    """

    app_id = models.CharField(max_length=50)
    repository_id = models.CharField(max_length=50, blank=True, default="")

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["app_id", "repository_id"], name="imported_once")]

    def __str__(self) -> str:
        return f"{self.app_id} {self.repository_id}".rstrip()
