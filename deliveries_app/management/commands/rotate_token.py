from datetime import timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of, refusal
from deliveries_app.services import NotFound
from deliveries_app.services.tokens import OVERLAP, rotate_app_token
from docora.cli.output import add_json, add_yes, confirm, moment, write_json, wrong_usage

_HOUR = timedelta(hours=1)


class Command(BaseCommand):
    help = "Gives an app a new token and prints it, once. The old one is accepted for a while."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="as list_apps shows it")
        parser.add_argument(
            "--overlap-hours",
            type=float,
            default=OVERLAP / _HOUR,
            metavar="N",
            help=f"how long the old token is accepted ({OVERLAP / _HOUR:g}); 0 if it has leaked",
        )
        add_json(parser, "app_id, token, old_accepted_until")
        add_yes(parser)
        parser.epilog = "After a leak: rotate_token APP_ID --overlap-hours 0"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        if not 0 <= options["overlap_hours"] < 1e6:
            raise wrong_usage("--overlap-hours must be a number of hours.")
        if options["overlap_hours"] == 0:
            confirm(f"The token that {app} uses now will be refused at once.", yes=options["yes"])
        try:
            made = rotate_app_token(Actor.command(), app, overlap=options["overlap_hours"] * _HOUR)
        except (ValidationError, NotFound) as error:
            raise refusal(error) from None
        facts = {"app_id": app.app_id, "token": made.token, "old_accepted_until": made.old_accepted_until}
        if options["json"]:
            write_json(self.stdout, facts)
            return
        self.stdout.write(f"The new token of {app}. Keep it, it is not shown again:\n  {made.token}")
        until = made.old_accepted_until
        self.stdout.write(f"The old one is accepted until {moment(until)}." if until else "No other is accepted.")
