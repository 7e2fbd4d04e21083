from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management import progress
from deliveries_app.management.lookup import ServiceCommand, app_of, watch_of
from deliveries_app.models import BulkOperation, SyncRun
from deliveries_app.services import NotFailed, NotFound, retry_all, retry_by_app, retry_single
from docora.cli.output import write_result, wrong_usage


class Command(ServiceCommand):
    help = (
        "Retries failing repositories now instead of at their next attempt: one, all of one app, or all of every app."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", nargs="?", help="see list_apps")
        parser.add_argument("repository_id", nargs="?", help="see list_watches; all repositories of the app if omitted")
        parser.add_argument("--all", action="store_true", help="all failing repositories of all apps")
        progress.add_options(parser)
        parser.epilog = "For scripts: retry --all --wait --timeout 3600 --json"

    def handle(self, *args: Any, **options: Any) -> None:
        progress.check_options(options)
        if (options["app_id"] is not None) == options["all"]:
            raise wrong_usage("Give an app id, or --all.")
        try:
            progress.follow(self, self._request(options["app_id"], options["repository_id"]), options)
        except (NotFailed, NotFound):
            write_result(self, options, {"kind": "retry", "total": 0}, "Nothing is failing.")

    def _request(self, app_id: str | None, repository_id: str | None) -> SyncRun | BulkOperation:
        if app_id is None:
            return retry_all(self.actor)
        if repository_id is None:
            return retry_by_app(self.actor, app_of(app_id))
        return retry_single(self.actor, watch_of(app_id, repository_id))
