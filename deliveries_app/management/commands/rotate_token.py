from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of
from deliveries_app.services.tokens import OVERLAP, rotate_app_token
from docora.cli.output import add_json, add_yes, confirm, write_result, wrong_usage
from docora.text import format_time

_HOUR = timedelta(hours=1)


class Command(ServiceCommand):
    help = "Creates a new token for an app and prints it once. The old token stays valid for --overlap-hours."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument(
            "--overlap-hours",
            type=float,
            default=OVERLAP / _HOUR,
            metavar="N",
            help=f"how long the old token stays valid ({OVERLAP / _HOUR:g}); 0 if it has leaked",
        )
        add_json(parser, "app_id, token, old_accepted_until")
        add_yes(parser)
        parser.epilog = "After a leak: rotate_token APP_ID --overlap-hours 0"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        if not 0 <= options["overlap_hours"] < 1e6:
            raise wrong_usage("--overlap-hours must be a number of hours.")
        if options["overlap_hours"] == 0:
            confirm(f"The current token of {app} will be revoked now.", yes=options["yes"])
        new = rotate_app_token(self.actor, app, overlap=options["overlap_hours"] * _HOUR)
        until = new.old_accepted_until
        old = f"The old token is valid until {format_time(until)}." if until else "No other token is valid."
        message = f"The new token of {app}. Save it; it is not shown again:\n  {new.token}\n{old}"
        write_result(self, options, {"app_id": app.app_id, "token": new.token, "old_accepted_until": until}, message)
