"""Made-up traffic for the last day, so that the charts of the demo and of the screenshots have something to show."""

import math
import random
from datetime import timedelta

from django.utils import timezone

from deliveries_app.models import App, HourlyTraffic


def add_example_day(
    app: App, rng: random.Random, *, size: int, milliseconds: int, failing_hours: int = 0
) -> list[HourlyTraffic]:
    """Add traffic for the 23 hours before this one, and return it: busy by day, quiet by night.

    `size` scales the number of files, `milliseconds` is the typical time for a file. In the last `failing_hours`, the app
    rejected some files.
    """
    this_hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    rows = []
    for ago in range(1, 24):
        day = 1 + math.cos((ago - 5) / 24 * 2 * math.pi)
        files = int((40 + 150 * day) * size * rng.uniform(0.6, 1.2))
        failed = rng.randrange(60, 220) if ago <= failing_hours else 0
        rows.append(
            HourlyTraffic(
                app=app,
                hour=this_hour - timedelta(hours=ago),
                files=files,
                bytes=files * rng.randrange(4_000, 12_000),
                failed=failed,
                requests=files + failed,
                milliseconds=int((files + failed) * milliseconds * rng.uniform(0.6, 1.5)),
            )
        )
    return HourlyTraffic.objects.bulk_create(rows)
