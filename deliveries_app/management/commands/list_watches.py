from collections.abc import Generator
from contextlib import closing
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.management.lookup import app_of, watches_of
from deliveries_app.models import AppRepository, AppRepositoryQuerySet
from deliveries_app.reports.status import watch_fields
from docora.cli.output import add_json, write_json, write_table
from docora.text import format_time

_CHUNK_SIZE = 500


class Command(BaseCommand):
    help = "Lists the watched repositories of all apps or of one, with their ids."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="only this app")
        parser.add_argument("--failing", action="store_true", help="only failing repositories")
        add_json(
            parser,
            "one line per watch: app_id, app_name, repository_id, github_url, owner, name, status, retry_count, "
            "last_error, last_scanned_at, last_synced_at, files, files_failing",
        )
        parser.epilog = "For scripts, id and URL: list_watches APP_ID | cut -f2,3"

    def handle(self, *args: Any, **options: Any) -> None:
        watches = watches_of(app_of(options["app_id"]) if options["app_id"] is not None else None)
        if options["failing"]:
            watches = watches.failing()
        with closing(_iterate(watches)) as found:
            if options["json"]:
                for watch in found:
                    write_json(self.stdout, watch_fields(watch))
            else:
                write_table(
                    self.stdout, ["App", "Id", "URL", "Status", "Files", "Last complete sync"], map(_row, found)
                )


def _iterate(watches: AppRepositoryQuerySet) -> Generator[AppRepository]:
    yield from watches.with_state().iterator(chunk_size=_CHUNK_SIZE)


def _row(watch: AppRepository) -> list[str]:
    ids = [watch.app.app_id, watch.repository.repository_id, watch.github_url, watch.detail.in_words]
    return [*ids, f"{watch.tree_files:,}", format_time(watch.last_synced_at) if watch.last_synced_at else "never"]
