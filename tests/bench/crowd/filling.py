"""Fill a database with generated rows."""

from django.db import connection, transaction
from django.utils import timezone

from deliveries_app.models import Delivery, HourlyTraffic, SyncRun
from tests.bench.crowd import checks, deliveries, history, layout, tables
from tests.bench.crowd.layout import Amounts
from tests.bench.crowd.loading import load


def fill(amounts: Amounts) -> None:
    """Write all rows in one transaction."""
    with transaction.atomic():
        now = timezone.now()
        watched = tables.make(amounts, layout.draw(amounts), now)
        load(Delivery, deliveries.COLUMNS, deliveries.deliveries(amounts, watched, now))
        checks.make([one.watch for one in watched], now)
        operations = history.make_operations(amounts, watched, now)
        load(SyncRun, history.RUN_COLUMNS, history.runs(amounts, watched, operations, now))
        apps = list({one.watch.app_id: one.watch.app for one in watched}.values())
        load(HourlyTraffic, history.TRAFFIC_COLUMNS, history.traffic(amounts, apps, now))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
