from collections.abc import Generator
from contextlib import closing
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.api import watch_facts
from deliveries_app.management.finding import app_of, pairs_of
from deliveries_app.models import AppRepository, AppRepositoryQuerySet
from docora.console import add_json, moment, write_json, write_table

_SLICE = 500


class Command(BaseCommand):
    help = "Lists the watched repositories with their ids, of all apps or of one."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        parser.add_argument("--failing", action="store_true", help="only those whose last sync did not end well")
        add_json(parser, "a line for each watch, with the keys of the admin JSON's list")
        parser.epilog = "Address and id, for scripts: list_watches APP_ID | cut -f2,3"

    def handle(self, *args: Any, **options: Any) -> None:
        pairs = pairs_of(app_of(options["app_id"]) if options["app_id"] else None)
        if options["failing"]:
            pairs = pairs.failing()
        with closing(_each(pairs)) as found:
            if options["json"]:
                for pair in found:
                    write_json(self.stdout, watch_facts(pair))
            else:
                write_table(self.stdout, ["App", "Id", "URL", "Status", "Files", "Last sync"], map(_row, found))


def _each(pairs: AppRepositoryQuerySet) -> Generator[AppRepository]:
    yield from pairs.iterator(chunk_size=_SLICE)


def _row(pair: AppRepository) -> list[str]:
    ids = [pair.app.app_id, pair.repository.repository_id, pair.github_url, pair.get_status_display()]
    return [*ids, f"{pair.tree_files:,}", moment(pair.last_synced_at) if pair.last_synced_at else "never"]
