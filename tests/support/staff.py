"""Create rows and staff users for admin tests that need no sync."""

from datetime import timedelta

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from deliveries_app.models import App, AppRepository, AppToken, Status
from deliveries_app.models.root_causes import RootCause
from docora.security.crypto import hash_token, new_token
from repositories_app.models import Repository

VIEWS = ("app", "apprepository", "bulkoperation", "repository", "syncrun", "delivery")


def make_app(name: str) -> App:
    app = App.objects.create(name=name, base_url="https://x.example", email="a@b.example", client_auth_key="k" * 20)
    token = new_token()
    AppToken.objects.create(app=app, digest=hash_token(token), ending=token[-4:])
    return app


def make_watch(app: App, name: str, **fields) -> AppRepository:
    repository, _ = Repository.objects.get_or_create(
        canonical_url=f"https://github.com/acme/{name}", defaults={"owner": "acme", "name": name}
    )
    fields = {"status": Status.SYNCED, "tree_files": 100, "tree_bytes": 5_000, "next_sync_at": None} | fields
    return AppRepository.objects.create(
        app=app, repository=repository, github_url=repository.canonical_url, github_token="ghp_secret", **fields
    )


def occupy(app: App) -> AppRepository:
    """Add a watch that is syncing and has all of the app's slots."""
    until = timezone.now() + timedelta(seconds=30)
    return make_watch(app, "busy", status=Status.SCANNING, lease_until=until, lease_slots=app.max_in_flight)


def staff(name: str, *codenames: str) -> Client:
    user = User.objects.create_user(name, password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client()
    client.force_login(user)
    return client


def fail(watch: AppRepository, root: RootCause, *, status: int | None = None, answer: str = "", **fields) -> None:
    """Put the watch in the state after a failed attempt."""
    state = fields.pop("state", Status.PENDING)
    AppRepository.objects.filter(pk=watch.pk).update(
        root_cause=root, last_status_code=status, last_response=answer, failing_since=timezone.now(), status=state,
        last_error=f"It failed: {root}.", last_error_cause="http" if status else "other",
        next_sync_at=timezone.now(), **fields,
    )  # fmt: skip
    watch.refresh_from_db()
