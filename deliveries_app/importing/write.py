"""Store imported apps, repositories and watches. A watch is `arriving` until all its delivery records are stored.

Each app and watch is recorded in `Imported`, so that it is never imported twice, and so is a watch that was already here.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import batched, chain
from typing import Any

from django.db import connection, transaction
from django.db.models import Max
from django.db.models.functions import Now
from django.utils import timezone

from deliveries_app import audit
from deliveries_app.actors import Actor
from deliveries_app.importing.source import SourceFile, SourceRepository, SourceWatch
from deliveries_app.models import (
    App,
    AppRepository,
    AppToken,
    AuditAction,
    AuditEntry,
    Delivery,
    Imported,
    Reason,
    Status,
)
from deliveries_app.services import requests
from repositories_app import services as repositories
from repositories_app.git.url import RepositoryUrl
from repositories_app.models import Repository


def write_app(actor: Actor, app: App, created_at: datetime | None, token_hash: str) -> None:
    """Save the app. `token_hash` is empty if Docora cannot recognise its token."""
    names = ("name", "base_url", "email", "website", "description", "client_auth_key")
    changes = audit.Changes.initial(App, {name: getattr(app, name) for name in names})
    with transaction.atomic():
        app.save(force_insert=True)
        Imported.objects.create(app_id=app.app_id)
        if token_hash:
            AppToken.objects.create(app=app, digest=token_hash, ending="")
        _restore_created_at(App, app.pk, created_at)
        audit.record(actor, AuditAction.APP_IMPORTED, [app], "Imported", changes)


def write_repository(source: SourceRepository, url: RepositoryUrl) -> Repository:
    """Create the repository. If it already exists here under another id, the new row is a twin."""
    with transaction.atomic():
        repository = Repository.objects.create(
            repository_id=source.repository_id,
            canonical_url=url.canonical,
            twin=next_twin(url),
            owner=url.owner,
            name=url.name,
            is_private=bool(source.is_private),
        )
        _restore_created_at(Repository, repository.pk, source.created_at)
    return repository


def next_twin(url: RepositoryUrl) -> int:
    """Return the `twin` number for the next row with this URL: 0 for the first."""
    last = Repository.objects.filter(canonical_url=url.canonical).aggregate(last=Max("twin"))["last"]
    return 0 if last is None else last + 1


def note_imported(app: App, repository_id: str) -> None:
    """Note that an import has found the app's watch of this repository here, so that no later one brings it back."""
    Imported.objects.get_or_create(app_id=app.app_id, repository_id=repository_id)


def began_after(time: datetime, app: App, repository_id: str) -> bool:
    """Return whether the app's watch of this repository was imported, or began here, after this time."""
    begun = AuditEntry.objects.filter(action__in=[AuditAction.WATCH_IMPORTED, AuditAction.WATCHED], app_id=app.app_id)
    return begun.filter(repository_id=repository_id, created_at__gte=time).exists()


def begin_watch(app: App, repository: Repository, url: str, token: str) -> AppRepository | None:
    """Create the watch without its records. It is `arriving`, so it is neither checked nor synced yet.

    Return None if the app or the repository was removed during the import.
    """
    with transaction.atomic():
        locked = App.objects.select_for_update(no_key=True).filter(pk=app.pk, ended_at=None).first()
        if locked is None or repositories.lock(repository.pk) is None:
            return None
        Imported.objects.create(app_id=app.app_id, repository_id=repository.repository_id)
        return AppRepository.objects.create(
            app=app,
            repository=repository,
            watch_id=_watch_id(app, repository),
            github_url=url,
            github_token=token,
            next_sync_at=None,
            arriving=True,
            sequence_high=locked.sequence_high,
        )


def _watch_id(app: App, repository: Repository) -> str:
    """Return the watch id of an imported watch, which is the same after each import into an empty database.

    A client that has received notifications after an earlier move drops its copy when another id begins (`engine.md` §9),
    and what the source recorded as delivered would not be sent again.
    """
    names = f"{app.app_id} {repository.repository_id}"
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def complete_watch(
    actor: Actor, watch: AppRepository, source: SourceWatch, state: dict[str, Any], token: str, *, has_records: bool
) -> bool:
    """End the watch's `arriving` state, so that it can be checked and synced. `state` holds its initial columns.

    Return False if another import has completed it or it was unwatched. A sync that was requested during the import
    stays due. Otherwise, a watch that was synced is due for a check, which finds out whether anything has changed. Any
    other watch is due for a sync, which counts as its initial one if nothing was ever delivered. Unless a sync was
    requested, the source's token replaces the one that an interrupted import stored. So a token that was replaced here
    is kept, because replacing it requested a sync.
    """
    with transaction.atomic():
        rows = AppRepository.objects.filter(pk=watch.pk, arriving=True, ended_at=None)
        row = rows.select_for_update(no_key=True).select_related("app", "repository").first()
        if row is None:
            return False
        fields: dict[str, Any] = {"arriving": False, "next_check_at": Now(), "last_scanned_at": source.last_scanned_at}
        if row.next_sync_at is None:
            fields |= state | {"github_token": token}
        rows.update(**fields)
        _restore_created_at(AppRepository, row.pk, source.created_at)
        if state["status"] == Status.PENDING and not has_records and row.next_sync_at is None:
            requests.open_runs(actor, [row.pk], Reason.INITIAL)
        audit.record(actor, AuditAction.WATCH_IMPORTED, [row], "Imported")
    return True


def _restore_created_at(model: type[App | Repository | AppRepository], pk: int, moment: datetime | None) -> None:
    """Restore the creation time, which `auto_now_add` has set to the time of the import."""
    if moment is not None:
        model._default_manager.filter(pk=pk).update(created_at=moment)


_BATCH = 2000  # rows in one transaction

# Size and mode are unknown. The first sync sets them when it adopts the row (`engine.md` §2).
_INSERT = (
    "INSERT INTO deliveries_app_delivery (watch_id, path, sha, acknowledged_sha, updated_at, source_path, mode, kind, size, sequence,"
    " generation, acknowledged, remark, attempts) {rows} ON CONFLICT (watch_id, path) DO NOTHING"
)
_DEFAULTS = "'', '100644', 'create', 0, 0, 1, true, '', 0"
_ARRAYS = _INSERT.format(
    rows=f"SELECT %s, new.path, new.sha, new.sha, new.at, {_DEFAULTS}"  # noqa: S608
    " FROM unnest(%s::text[], %s::text[], %s::timestamptz[]) AS new (path, sha, at)"
)
_ROW = _INSERT.format(rows=f"VALUES (%s, %s, %s, %s, %s, {_DEFAULTS})")


def write_records(watch: AppRepository, files: Iterable[SourceFile]) -> int:
    """Store delivery records, given in byte order of their paths, and return how many the watch then has.

    They replace those that an interrupted import has stored, because the source may have changed since. Each batch replaces
    the paths up to its last one, so that two concurrent imports leave no gap. It checks that the watch is still arriving,
    and the function returns early if it was unwatched.
    """
    rows = Delivery.objects.filter(watch=watch)
    last = ""
    for batch in chain(batched(files, _BATCH), [()]):  # the empty batch stands for all paths after the last one
        replaced = rows.filter(path__gt=last)
        if batch:
            last = batch[-1].path
            replaced = replaced.filter(path__lte=last)
        with transaction.atomic():
            arriving = AppRepository.objects.filter(pk=watch.pk, arriving=True, ended_at=None)
            if not arriving.select_for_update(no_key=True).values_list("pk"):
                break
            replaced.delete()
            if batch:
                _insert(watch.pk, batch, timezone.now())
    return rows.count()


def _insert(watch_pk: int, files: Sequence[SourceFile], now: datetime) -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            paths, shas, times = zip(*files, strict=True)
            cursor.execute(_ARRAYS, [watch_pk, list(paths), list(shas), [time or now for time in times]])
        else:
            adapt = connection.ops.adapt_datetimefield_value
            cursor.executemany(_ROW, [(watch_pk, path, sha, sha, adapt(time or now)) for path, sha, time in files])
