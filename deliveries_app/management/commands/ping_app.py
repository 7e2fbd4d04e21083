from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of
from deliveries_app.services.pinging import send_ping
from docora.cli.output import add_json, write_json, wrong_usage


class Command(ServiceCommand):
    help = "Sends an app a signed test ping and prints its response; exit 1 if the app did not accept it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("--new-key", action="store_true", help="sign only with the new key from rotate_key")
        add_json(parser, "app_id, delivered, message, hint, status, seconds, body, new_key")

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        if options["new_key"] and not app.is_rotating_key:
            raise wrong_usage(f"{app} has no new key. Use rotate_key to make one.")
        ping = send_ping(self.actor, app, new_key=options["new_key"])
        if options["json"]:
            write_json(self.stdout, {"app_id": app.app_id, **asdict(ping)})
        elif ping.delivered:
            self.stdout.write(ping.message)
        if not ping.delivered:
            raise CommandError(f"{ping.message} {ping.hint}")
