from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import command_error
from deliveries_app.services import onboard_app
from deliveries_app.webhooks.payloads import timestamp
from docora.cli.output import add_json, secret_from_stdin, write_json


class Command(BaseCommand):
    help = "Registers a client app and prints its token and signing key, which are shown only once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="3 to 100 characters")
        parser.add_argument("base_url", help="notifications are posted to BASE_URL/create, BASE_URL/update and so on")
        parser.add_argument("email", help="contact address for the app")
        key = parser.add_mutually_exclusive_group()
        key.add_argument(
            "--client-auth-key", metavar="KEY", default="", help="16 to 500 characters; generated if omitted"
        )
        key.add_argument(
            "--client-auth-key-stdin",
            action="store_true",
            help="read the key from stdin, which hides it from process lists",
        )
        add_json(parser, "app_id, token, client_auth_key, created_at")
        parser.epilog = "Example: onboard_app Portal https://portal.example/hooks ops@portal.example --json"

    def handle(self, *args: Any, **options: Any) -> None:
        key = secret_from_stdin("key") if options["client_auth_key_stdin"] else options["client_auth_key"]
        try:
            onboarded = onboard_app(
                Actor.command(),
                name=options["name"],
                base_url=options["base_url"],
                email=options["email"],
                client_auth_key=key,
            )
        except ValidationError as error:
            raise command_error(error) from None
        fields = {
            "app_id": onboarded.app.app_id,
            "token": onboarded.token,
            "client_auth_key": onboarded.client_auth_key,
            "created_at": timestamp(onboarded.app.created_at),
        }
        if options["json"]:
            write_json(self.stdout, fields)
            return
        self.stdout.write(f"{onboarded.app.name} is registered. Save these values; they are not shown again:")
        for name, value in fields.items():
            self.stdout.write(f"  {name:<16} {value}")
