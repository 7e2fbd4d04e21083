from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of, refusal
from deliveries_app.services import NotFound
from deliveries_app.services.pinging import send_ping
from docora.cli.output import add_json, write_json, wrong_usage


class Command(BaseCommand):
    help = "Sends an app the signed test ping, and says what it answered; exit 1 if it did not accept it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="as list_apps shows it")
        parser.add_argument("--new-key", action="store_true", help="signed with the key that rotate_key made")
        add_json(parser, "app_id, delivered, words, hint, status, seconds, body, new_key")

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        if options["new_key"] and not app.is_rotating_key:
            raise wrong_usage(f"{app} has no new key: rotate_key makes one.")
        try:
            ping = send_ping(Actor.command(), app, new_key=options["new_key"])
        except NotFound as error:
            raise refusal(error) from None
        if options["json"]:
            write_json(self.stdout, {"app_id": app.app_id, **asdict(ping)})
        elif ping.delivered:
            self.stdout.write(ping.words)
        if not ping.delivered:
            raise CommandError(f"{ping.words} {ping.hint}")
