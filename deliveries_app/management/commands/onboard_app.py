from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import refusal
from deliveries_app.services import onboard_app
from deliveries_app.webhooks.payloads import timestamp
from docora.cli.output import add_json, secret_from_stdin, write_json


class Command(BaseCommand):
    help = "Registers a client app and prints its token and signing key, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="3 to 100 characters")
        parser.add_argument("base_url", help="notifications go to BASE_URL/create and so on")
        parser.add_argument("email", help="of whoever looks after the app")
        key = parser.add_mutually_exclusive_group()
        key.add_argument(
            "--client-auth-key", metavar="KEY", default="", help="16 to 500 characters; generated if not given"
        )
        key.add_argument(
            "--client-auth-key-stdin",
            action="store_true",
            help="read it from stdin, where no list of processes shows it",
        )
        add_json(parser, "app_id, token, client_auth_key, created_at")
        parser.epilog = "Example: onboard_app Portal https://portal.example/hooks ops@portal.example --json"

    def handle(self, *args: Any, **options: Any) -> None:
        key = secret_from_stdin("key") if options["client_auth_key_stdin"] else options["client_auth_key"]
        try:
            made = onboard_app(
                Actor.command(),
                name=options["name"],
                base_url=options["base_url"],
                email=options["email"],
                client_auth_key=key,
            )
        except ValidationError as error:
            raise refusal(error) from None
        facts = {
            "app_id": made.app.app_id,
            "token": made.token,
            "client_auth_key": made.client_auth_key,
            "created_at": timestamp(made.app.created_at),
        }
        if options["json"]:
            write_json(self.stdout, facts)
            return
        self.stdout.write(f"{made.app.name} is registered. Keep these, they are not shown again:")
        for name, value in facts.items():
            self.stdout.write(f"  {name:<16} {value}")
