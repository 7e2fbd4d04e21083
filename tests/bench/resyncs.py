"""Measure the requests for re-syncs: clearing the records of a huge repository, and queueing a thousand."""

import statistics
import time
from collections.abc import Iterator

from tests.bench.report import Row
from tests.bench.stage import Stage

ROWS = 1_000_000
WATCHES = 1_000


def clear(stage: Stage) -> Iterator[Row]:
    """Force re-sync of a repository with 1,000,000 delivery records."""
    from django.db import connection

    from deliveries_app.actors import Actor
    from deliveries_app.models import AppRepository, Delivery
    from deliveries_app.services import resync_single

    receiver = stage.receiver()
    app = stage.app(receiver)
    stage.many_watches(app, receiver.url, 1, "c" * 40)
    watch = AppRepository.objects.get(app=app)
    table = Delivery._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (watch_id, path, mode, kind, source_key, sha, size, sequence, generation, acknowledged,"
            " acknowledged_sha, attempts, updated_at, source_path, remark)"
            " SELECT %s, 'file-' || lpad(n::text, 7, '0'), '100644', 'create', repeat('b', 40), repeat('a', 64), 100, n,"
            " 0, true, repeat('a', 64), 0, now(), '', '' FROM generate_series(1, %s) n",
            [watch.pk, ROWS],
        )
    times = []
    for _ in range(7):
        began = time.perf_counter()
        resync_single(Actor.command(), watch)
        times.append(time.perf_counter() - began)
    median = statistics.median(times)
    yield Row(
        f"Force re-sync of a repository with {ROWS:,} delivery records",
        f"{median * 1000:.1f} ms",
        "≤ 20 ms",
        median <= 0.02,
        "one transaction clears, records and queues it",
    )


def all_of_an_app(stage: Stage) -> Iterator[Row]:
    """Re-sync all 1,000 repositories of an app."""
    from deliveries_app.actors import Actor
    from deliveries_app.services import resync_by_app

    receiver = stage.receiver()
    app = stage.app(receiver)
    stage.many_watches(app, receiver.url, WATCHES, "c" * 40)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        operation = resync_by_app(Actor.command(), app)
        times.append(time.perf_counter() - began)
        assert operation.total == WATCHES
    median = statistics.median(times)
    yield Row(f"Re-sync all {WATCHES:,} repositories of an app", f"queued in {median:.2f} s", "≤ 3 s", median <= 3)
