"""An app's quotas: watched repositories, files, bytes, and re-syncs per hour.

Administrators set the quotas. Those of watched repositories and re-syncs apply only to requests with the app's own token.
`planning/quota.py` enforces those of files and bytes, even if an administrator requested the sync.
"""

import math
from typing import NamedTuple

from django.db.models import Count, Sum
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from docora.text import counted

_HOUR = 3600.0


class TooManyWatches(ValueError):
    """The app has reached its quota of watched repositories."""

    def __init__(self, limit: int) -> None:
        repositories = counted(limit, "repository")
        super().__init__(
            f"The app's quota is {repositories}. Stop watching one, or ask an administrator to raise the quota."
        )


class TooManyResyncs(ValueError):
    """The app has used up its re-syncs. Another one is allowed in `seconds`."""

    def __init__(self, limit: int, seconds: int) -> None:
        resyncs = counted(limit, "re-sync")
        super().__init__(
            f"The app's quota is {resyncs} per hour. Try again in {seconds} seconds, or ask an administrator to raise it."
        )
        self.seconds = seconds


class Usage(NamedTuple):
    """What the app uses of one quota. `limit` is None without a quota."""

    used: int
    limit: int | None


def usage_of(app: App) -> dict[str, Usage]:
    """Return what the app uses of each quota, by the name of the quota in the API."""
    watches = AppRepository.objects.filter(app=app, ended_at=None)
    sums = watches.aggregate(watches=Count("pk"), files=Sum("tree_files", default=0), size=Sum("tree_bytes", default=0))
    return {
        "watches": Usage(sums["watches"], app.watch_limit),
        "files": Usage(sums["files"], app.file_limit),
        "bytes": Usage(sums["size"], app.byte_limit),
        "resyncs_per_hour": Usage(math.ceil(_resyncs_used(app)), app.resync_limit),
    }


def is_limited(actor: Actor, app: App) -> bool:
    """Return whether a quota limits what the actor can watch or re-sync."""
    return actor.app is not None and (app.watch_limit is not None or app.resync_limit is not None)


def require_room_for_watch(actor: Actor, app: App, *, excluding: int | None = None) -> None:
    """Raise `TooManyWatches` or `TooManyResyncs` unless the app can watch another repository.

    `excluding` is the primary key of the watch if it has already been created. The repository counts as a re-sync only
    once the app stops watching it (`count_unwatch`). The check is exact in a transaction that has locked the app.
    """
    if not is_limited(actor, app):
        return
    limit = app.watch_limit
    others = AppRepository.objects.filter(app=app, ended_at=None)
    if excluding is not None:
        others = others.exclude(pk=excluding)
    if limit is not None and others.count() >= limit:
        raise TooManyWatches(limit)
    require_resync(actor, app)


def require_resync(actor: Actor, app: App) -> None:
    """Raise `TooManyResyncs` if the app has used up its quota. Does not count a re-sync."""
    if is_limited(actor, app):
        _require_resync(app, _resyncs_used(app))


def count_resync(actor: Actor) -> None:
    """Count a re-sync if an app requests it. Raises `TooManyResyncs` if it has used up its quota.

    Call this in the transaction that requests the re-sync, before it locks a watch.
    """
    if actor.app is None or actor.app.resync_limit is None:
        return
    row = App.objects.select_for_update(no_key=True).get(pk=actor.app.pk)
    used = _resyncs_used(row)
    _require_resync(row, used)
    App.objects.filter(pk=row.pk).update(resyncs_used=used + 1, resyncs_used_at=Now())


def count_unwatch(actor: Actor, watch: AppRepository) -> None:
    """Count a re-sync when an app stops watching a repository, because watching it again would send every file.

    Never refuses: the count stops at the quota. A watch that another call has just ended is not counted again. Call this in
    the transaction that ends the watch, before it locks the watch.
    """
    limit = watch.app.resync_limit
    if actor.app is None or limit is None:
        return
    row = App.objects.select_for_update(no_key=True).get(pk=watch.app_id)
    if AppRepository.objects.filter(pk=watch.pk, ended_at=None).exists():
        used = min(_resyncs_used(row) + 1, float(limit))
        App.objects.filter(pk=row.pk).update(resyncs_used=used, resyncs_used_at=Now())


def _resyncs_used(app: App) -> float:
    """Return how many re-syncs of its quota the app has used. One becomes available again every `3600 / quota` seconds."""
    if app.resync_limit is None or app.resyncs_used_at is None:
        return 0.0
    now = App.objects.annotate(now=Now()).values_list("now", flat=True).get(pk=app.pk)  # the clock of `resyncs_used_at`
    seconds = max(0.0, (now - app.resyncs_used_at).total_seconds())
    return max(0.0, app.resyncs_used - seconds * app.resync_limit / _HOUR)


def _require_resync(app: App, used: float) -> None:
    limit = app.resync_limit
    if limit is not None and used + 1 > limit:
        raise TooManyResyncs(limit, math.ceil((used + 1 - limit) * _HOUR / limit))
