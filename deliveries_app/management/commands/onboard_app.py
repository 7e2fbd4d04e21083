import json
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.services import onboard_app


class Command(BaseCommand):
    help = "Registers a client app and prints its token and signing key, once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("base_url", help="notifications go to BASE_URL/create and so on")
        parser.add_argument("email")
        parser.add_argument("--client-auth-key", default="", help="16 to 500 characters; generated if not given")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            made = onboard_app(
                Actor.command(),
                name=options["name"],
                base_url=options["base_url"],
                email=options["email"],
                client_auth_key=options["client_auth_key"],
            )
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        facts = {
            "app_id": made.app.app_id,
            "token": made.token,
            "client_auth_key": made.client_auth_key,
            "created_at": made.app.created_at.isoformat(),
        }
        if options["json"]:
            self.stdout.write(json.dumps(facts))
            return
        self.stdout.write(f"{made.app.name} is registered. Keep these, they are not shown again:")
        for name, value in facts.items():
            self.stdout.write(f"  {name:<16} {value}")
