from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from deliveries_app.demo.crowd import deliveries, history, layout, tables
from deliveries_app.demo.crowd.layout import Amounts
from deliveries_app.demo.crowd.loading import load
from deliveries_app.models import App, Delivery, HourlyTraffic, SyncRun
from docora.cli.output import Bar, add_json, write_json, wrong_usage

type Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]

_AMOUNTS = ("apps", "repositories", "deliveries", "runs")


class Command(BaseCommand):
    help = (
        "Fills an empty database with made-up rows, as many as a large installation has. Nothing of it is ever fetched or "
        "sent by itself: every next time lies a year ahead."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        for name in _AMOUNTS:
            default = getattr(Amounts, name)
            parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"so many ({default:,})")
        parser.add_argument("--seed", type=int, default=Amounts.seed, metavar="N", help="another seed, other rows (1)")
        parser.add_argument("--yes", action="store_true", help="also into a database that holds apps already")
        add_json(parser, "apps, repositories, deliveries, runs")

    def handle(self, *args: Any, **options: Any) -> None:
        amounts = Amounts(**{name: options[name] for name in (*_AMOUNTS, "seed")})
        if amounts.apps < 1 or amounts.repositories < 1 or min(amounts.deliveries, amounts.runs) < 0:
            raise wrong_usage("There must be at least one app and one repository.")
        if not options["yes"] and App.objects.exists():
            raise CommandError(
                "This database holds apps already, and made-up rows cannot be told from real ones afterwards. "
                "Give another DATABASE_URL or DATA_DIR; or --yes, if it is to hold both."
            )
        try:
            with transaction.atomic():
                _fill(amounts, partial(_track, options["json"]))
        except IntegrityError as error:
            raise CommandError(f"Nothing is written: rows of this --seed are here already. ({error})") from None
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        if options["json"]:
            write_json(self.stdout, {name: getattr(amounts, name) for name in _AMOUNTS})
            return
        self.stdout.write(
            f"{amounts.apps:,} apps watch {amounts.repositories:,} repositories; {amounts.deliveries:,} deliveries, "
            f"{amounts.runs:,} sync runs."
        )


def _track(quiet: bool, rows: Iterable[Any], words: str, total: int | None) -> Iterator[Any]:
    with Bar(quiet=quiet) as bar:
        yield from bar.track(rows, words, total)


def _fill(amounts: Amounts, track: Track) -> None:
    now = timezone.now()
    watches = layout.draw(amounts)
    watched = tables.make(amounts, list(track(watches, "Apps and repositories", len(watches))), now)
    sent = deliveries.deliveries(amounts, watched, now)
    load(Delivery, deliveries.COLUMNS, track(sent, "Deliveries", amounts.deliveries))
    operations = history.make_operations(amounts, watched, now)
    happened = history.runs(amounts, watched, operations, now)
    load(SyncRun, history.RUN_COLUMNS, track(happened, "Sync runs", amounts.runs))
    apps = list({one.watch.app_id: one.watch.app for one in watched}.values())
    load(HourlyTraffic, history.TRAFFIC_COLUMNS, track(history.traffic(amounts, apps, now), "Hours of traffic", None))
