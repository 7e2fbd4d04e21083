"""`manage.py doctor`: what would bite in production, in words.

One module per subject. An examination is a small generator of findings that knows nothing of the others; this is the
list of them, in the order in which they are made: what others need comes first.
"""

from functools import partial

from deliveries_app.monitoring.doctor import (
    configuration,
    database,
    delivery,
    disk,
    git,
    keys,
    outbound,
    redis_server,
    work,
)
from deliveries_app.monitoring.doctor.examination import Examination, Report, examine
from deliveries_app.monitoring.doctor.findings import Level

__all__ = ["Level", "Report", "examinations", "examine"]

_PING_SECONDS = 70.0  # two attempts, each as long as the client may take


def examinations(*, offline: bool = False, app_id: str = "") -> list[Examination]:
    """All of them; `offline` without those that leave the machine, `app_id` with a test ping to that app."""
    found = [
        Examination("git", git.version),
        Examination("database", database.answers),
        Examination("clock", database.clock, needs=("database",)),
        Examination("sqlite", database.sqlite, needs=("database",)),
        Examination("redis", redis_server.answers),
        Examination("redis-server", redis_server.server, needs=("redis",)),
        Examination("keys", keys.strength),
        Examination("secrets", keys.secrets, needs=("database",)),
        Examination("files", keys.permissions),
        Examination("settings", configuration.what_bites),
        Examination("django", configuration.django_checks),
        Examination("people", configuration.people, needs=("database",)),
        Examination("workers", work.workers, needs=("redis",)),
        Examination("sweep", work.sweep, needs=("redis",)),
        Examination("backlog", work.backlog, needs=("database", "redis")),
        Examination("pauses", work.pauses, needs=("database",)),
        Examination("addresses", outbound.addresses),
        Examination("disk", disk.space),
        Examination("mirrors", disk.mirrors),
        Examination("delivery", delivery.on_this_machine),
    ]
    if not offline:
        found.append(Examination("git-host", outbound.git_host, seconds=25.0))
    if app_id:
        ping = partial(delivery.to_app, app_id)
        found.append(Examination("app", ping, needs=("database",), seconds=_PING_SECONDS))
    return found
