from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand
from deliveries_app.services import onboard_app
from deliveries_app.services.onboarding import taken_name_warning
from deliveries_app.webhooks.payloads import timestamp
from docora.cli.output import add_json, secret_from_stdin, write_result


class Command(ServiceCommand):
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
        given = {name: options[name] for name in ("name", "base_url", "email")}
        onboarded = onboard_app(self.actor, client_auth_key=key, **given)
        if warning := taken_name_warning(onboarded.app):
            self.stderr.write(warning, self.style.WARNING)
        fields = {
            "app_id": onboarded.app.app_id,
            "token": onboarded.token,
            "client_auth_key": onboarded.client_auth_key,
            "created_at": timestamp(onboarded.app.created_at),
        }
        lines = [f"{onboarded.app.name} is registered. Save these values; they are not shown again:"]
        lines += [f"  {name:<16} {value}" for name, value in fields.items()]
        write_result(self, options, fields, "\n".join(lines))
