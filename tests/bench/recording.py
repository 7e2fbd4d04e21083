"""Measure announcing and recording, without the database's own work: `python -m tests.bench.recording [sqlite]`."""

import json
import sys
import time
from typing import Any

from tests.bench.stage import open_stage

FILES = 20_000


def microseconds() -> float:
    """Return this process's CPU time per file announced and recorded as acknowledged, in batches as in a sync."""
    from django.conf import settings

    from deliveries_app.models import AppRepository, Reason
    from deliveries_app.models.deliveries import Kind
    from deliveries_app.planning.plan import Change
    from deliveries_app.progress import runs
    from deliveries_app.sync.lease import claim
    from deliveries_app.sync.recorder import Notification, Recorder

    lease = claim(AppRepository.objects.get().pk)
    assert lease
    run = runs.open_run(lease.watch, Reason.CHANGE, requested_by="bench")
    run.save()
    recorder = Recorder(lease, run, had_failures=False, on_first={})
    fields: Any = ("100644", "b" * 40, 4096, "", None, None, False, False, 0, None)
    batches = [
        [
            Notification(Change(Kind.CREATE, f"folder/file-{n:06}.txt", *fields), "b" * 40, f"{n:064x}", 4096, b"")
            for n in range(start, start + settings.RECORD_BATCH)
        ]
        for start in range(0, FILES, settings.RECORD_BATCH)
    ]
    began = time.process_time()
    for batch in batches:
        recorder.commit(batch)
        for notification in batch:
            recorder.timed(True, 0.001)
            recorder.acknowledge(notification, 200, 0.001)
    recorder.commit()
    return (time.process_time() - began) / FILES * 1e6


def main() -> None:
    with open_stage(*sys.argv[1:2]) as stage:
        receiver = stage.receiver()
        from django.utils import timezone

        stage.many_watches(stage.app(receiver), receiver.url, 1, "c" * 40)
        from deliveries_app.models import AppRepository

        AppRepository.objects.update(next_sync_at=timezone.now())
        print(json.dumps(microseconds()))


if __name__ == "__main__":
    main()
