from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, watch_of, watches_of
from deliveries_app.reports.impact import removal_of
from deliveries_app.services import unwatch_repository
from docora.cli.output import add_json, add_yes, confirm, write_result


class Command(ServiceCommand):
    help = "Stops watching a repository for an app. The app keeps its files and is not notified."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("repository_id", help="see list_watches")
        add_json(parser, "app_id, repository_id")
        add_yes(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        watch = watch_of(options["app_id"], options["repository_id"])
        removal = removal_of(watches_of(watch.app).filter(pk=watch.pk))
        mirror = " No other app watches it, so its mirror is deleted too." if removal.orphans else ""
        confirm(
            f"{watch.app} will no longer receive {watch.repository}. This deletes {removal.records_text}.{mirror}",
            yes=options["yes"],
        )
        unwatch_repository(self.actor, watch)
        ids = {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}
        write_result(self, options, ids, f"{watch.app} no longer watches {watch.repository}.")
