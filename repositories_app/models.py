"""Git repositories, one row each even if several apps watch it, and snapshots of their trees."""

from urllib.parse import urlsplit

from django.db import models
from django.utils import timezone

from docora.security.crypto import EncryptedTextField
from docora.text import new_id


def new_repository_id() -> str:
    return new_id("repo")


class Repository(models.Model):
    """A git repository, identified by its canonical URL. Its mirror is `REPOS_DIR/{repository_id}.git`.

    `twin` numbers the rows of one URL. It is 0 except for imported rows: the existing service treated each spelling of a
    URL as a separate repository, and client apps know all of these ids. New watches use the row with number 0.
    """

    repository_id = models.CharField(max_length=50, unique=True, default=new_repository_id, editable=False)
    canonical_url = models.CharField("URL", max_length=2048)
    twin = models.PositiveSmallIntegerField(default=0, db_default=0, editable=False)
    owner = models.CharField(max_length=255)
    name = models.CharField(max_length=255)
    is_private = models.BooleanField(default=False)
    consecutive_failures = models.PositiveIntegerField(default=0)
    last_failure_at = models.DateTimeField(null=True, blank=True)
    circuit_open_until = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(
        blank=True, default="", help_text="The last failure that affected every app that watches the repository."
    )
    last_error_cause = models.CharField(max_length=20, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "Git repository"
        verbose_name_plural = "Git repositories"
        ordering = ["owner", "name", "pk"]
        indexes = [
            models.Index(fields=["owner", "name", "id"], name="repository_order"),
            models.Index(
                fields=["circuit_open_until"],
                name="repository_circuit",
                condition=models.Q(circuit_open_until__isnull=False),
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["canonical_url", "twin"], name="repository_unique_url"),
            models.CheckConstraint(condition=~models.Q(owner="") & ~models.Q(name=""), name="repository_has_name"),
        ]

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def circuit_is_open(self) -> bool:
        return self.circuit_open_until is not None and self.circuit_open_until > timezone.now()


class HostOutage(models.Model):
    """A git host to which no connection could be made. The first success removes the row.

    Until then, Docora sends the host no requests, except that the sweep tries one connection at `retry_at`.
    """

    host = models.CharField(
        max_length=300, unique=True, help_text="Prefix of its repositories' URLs, such as https://git.example/"
    )
    since = models.DateTimeField()
    failures = models.PositiveIntegerField(default=1)
    retry_at = models.DateTimeField()
    error = models.TextField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return urlsplit(self.host).netloc


class Snapshot(models.Model):
    """The size of a commit's tree when it was planned. Confirmation pages and lists show these numbers.

    Only the newest one of each repository is read and kept (`sweep/retention.py`).
    """

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="snapshots")
    commit_sha = models.CharField(max_length=64)
    branch = models.CharField(max_length=255)
    file_count = models.PositiveBigIntegerField(help_text="regular files")
    total_bytes = models.PositiveBigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created_at", "-pk"]
        indexes = [models.Index(fields=["repository", "-created_at", "-id"], name="snapshot_latest")]
        constraints = [models.UniqueConstraint(fields=["repository", "commit_sha"], name="snapshot_unique_commit")]

    def __str__(self) -> str:
        return f"{self.repository} at {self.commit_sha[:12]}"


class GitHubApp(models.Model):
    """The credentials of a GitHub App, which create tokens for the repositories that it is installed on.

    A client app reads through it only if an administrator has assigned it to that app.
    """

    name = models.CharField(max_length=100, unique=True)
    host = models.CharField(
        "address",
        max_length=300,
        default="https://github.com",
        help_text="https://github.com, or the address of a GitHub Enterprise Server.",
    )
    app_id = models.CharField(
        "app ID", max_length=100, help_text="The app ID or the client ID from the app's settings page on GitHub."
    )
    private_key = EncryptedTextField(help_text="Signs requests for tokens.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "GitHub App"
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
