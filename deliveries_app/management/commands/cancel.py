from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, operation_of, watch_of
from deliveries_app.services import cancel_operation, cancel_request
from docora.cli.output import add_json, write_result
from docora.text import counted


class Command(ServiceCommand):
    help = "Cancels a re-sync, retry or resend that has not finished. What was already sent is not undone."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="a bulk operation's id (bulk_…), or an app's")
        parser.add_argument(
            "repository_id", nargs="?", help="with an app's id: cancel the newest request for this repository"
        )
        add_json(parser, "cancelled (the number of repositories)")
        parser.epilog = "Examples: cancel bulk_0123456789abcdef; cancel APP_ID REPOSITORY_ID"

    def handle(self, *args: Any, **options: Any) -> None:
        if options["repository_id"] is not None:
            cancelled = cancel_request(self.actor, watch_of(options["id"], options["repository_id"]))
        else:
            hint = "For one repository, give the app's id and the repository's."
            cancelled = cancel_operation(self.actor, operation_of(options["id"], hint))
        repositories = counted(cancelled, "repository")
        message = f"Cancelled: {repositories}." if cancelled else "There was nothing to cancel."
        write_result(self, options, {"cancelled": cancelled}, message)
