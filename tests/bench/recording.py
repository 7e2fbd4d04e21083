"""Measure announcing and recording, without the database's own work: `python -m tests.bench.recording [sqlite]`.

The cost of the columns of the last success includes the database's work: it is compared with the statement without them.
"""

import json
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from tests.bench.stage import open_stage

FILES = 20_000
FAILED_FILES = 2_000
ROUNDS = 21
_WITHOUT_COLUMNS = (
    "UPDATE deliveries_app_delivery SET acknowledged = %s, acknowledged_sha = sha, attempts = 0, hold_until = NULL,"
    " updated_at = %s WHERE watch_id = %s AND path = ANY(%s::text[])"
)
"""How PostgreSQL would acknowledge a batch if the last success were not recorded."""


def measure(*, with_columns: bool) -> dict[str, float]:
    """Return microseconds per file. `acknowledged` and `failed` are this process's CPU time for files announced and recorded
    in batches, as in a sync; `plain` and `with_columns` the whole time of acknowledging them."""
    from deliveries_app.models import AppRepository, Reason
    from deliveries_app.progress import runs
    from deliveries_app.sync.claim import claim
    from deliveries_app.sync.failures import Sent
    from deliveries_app.sync.notification import Failure
    from deliveries_app.sync.recorder import Recorder
    from deliveries_app.webhooks.payloads import Envelope

    lease = claim(AppRepository.objects.get().pk)
    assert lease
    run = runs.open_run(lease.watch, Reason.CHANGE, requested_by="bench")
    run.save()
    recorder = Recorder(lease, run, on_first={})
    batches = list(_batches(FILES))
    began = time.process_time()
    for batch in batches:
        recorder.commit(batch)
        for notification in batch:
            recorder.count_request(True, 0.001)
            recorder.acknowledge(notification, 200, 0.001)
    recorder.commit()
    found = {"acknowledged": (time.process_time() - began) / FILES * 1e6}
    body = b'{"repository":{},"file":{"path":"folder/file","content":"' + b"All work and no play. " * 200 + b'"}}'
    headers = Envelope("app_1", "run_1", "change").headers(body, "msg_1", 1, 1_700_000_000, ("k" * 40,))
    sent, failure = (
        Sent(headers, body[:1600], 0.001),
        Failure("http", "The app returned HTTP 500.", 500, b"out of disk"),
    )
    batches = list(_batches(FAILED_FILES))
    began = time.process_time()
    for batch in batches:
        recorder.commit(batch)
        for notification in batch:
            recorder.fail(notification, failure, sent)
    recorder.commit()
    found["failed"] = (time.process_time() - began) / FAILED_FILES * 1e6
    return found | (_acknowledging(lease.watch.pk) if with_columns else {})


def _batches(files: int) -> Iterator[list[Any]]:
    from django.conf import settings

    from deliveries_app.models.deliveries import Kind
    from deliveries_app.planning.plan import Change
    from deliveries_app.sync.notification import Notification

    fields: Any = ("100644", "b" * 40, 4096, "", None, None, False, False, 0, None)
    for start in range(0, files, settings.RECORD_BATCH):
        yield [
            Notification(Change(Kind.CREATE, f"folder/file-{n:06}.txt", *fields), "b" * 40, f"{n:064x}", 4096, b"")
            for n in range(start, start + settings.RECORD_BATCH)
        ]


def _acknowledging(watch_pk: int) -> dict[str, float]:
    """Acknowledge the same batches by turns without and with the columns. Return the medians."""
    from django.conf import settings
    from django.db import connection, transaction
    from django.utils import timezone

    from deliveries_app.models import bulk_sql

    times: dict[str, list[float]] = {"plain": [], "with_columns": []}
    paths = [f"folder/file-{n:06}.txt" for n in range(settings.RECORD_BATCH * 10)]
    for round_ in range(2 * ROUNDS):
        name = "with_columns" if round_ % 2 else "plain"
        began = time.perf_counter()
        for start in range(0, len(paths), settings.RECORD_BATCH):
            batch = paths[start : start + settings.RECORD_BATCH]
            with transaction.atomic():
                if name == "plain":
                    with connection.cursor() as cursor:
                        values: list[Any] = [True, timezone.now(), watch_pk, bulk_sql._texts(batch)]
                        cursor.execute(_WITHOUT_COLUMNS, values)
                else:
                    rows = [bulk_sql.Acknowledged(path, 200, 7) for path in batch]
                    bulk_sql.acknowledge(watch_pk, rows, timezone.now())
        times[name].append((time.perf_counter() - began) / len(paths) * 1e6)
    return {name: median(taken) for name, taken in times.items()}


def main() -> None:
    with open_stage(*sys.argv[1:2]) as stage:
        receiver = stage.receiver()
        from django.utils import timezone

        stage.many_watches(stage.app(receiver), receiver.url, 1, "c" * 40)
        from deliveries_app.models import AppRepository

        AppRepository.objects.update(next_sync_at=timezone.now())
        print(json.dumps(measure(with_columns="sqlite" not in sys.argv[1:2])))


if __name__ == "__main__":
    main()
