from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of
from deliveries_app.models import App
from deliveries_app.services.keys import cancel_key_rotation, retire_old_key, start_key_rotation
from docora.cli.output import add_json, secret_from_stdin, write_result


class Command(ServiceCommand):
    help = "Makes a new signing key for an app and prints it once. Both keys sign until --retire ends the old one."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        step = parser.add_mutually_exclusive_group()
        step.add_argument("--client-auth-key-stdin", action="store_true", help="read the new key from stdin")
        step.add_argument(
            "--retire", action="store_true", help="stop using the old key, after the app has accepted the new one"
        )
        step.add_argument("--cancel", action="store_true", help="discard the new key and keep the old one")
        add_json(parser, "app_id, step (started, retired or cancelled), client_auth_key if started")
        parser.epilog = "In this order: rotate_key APP_ID; ping_app APP_ID --new-key; rotate_key APP_ID --retire"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        fields, message = self._take_step(app, options)
        write_result(self, options, {"app_id": app.app_id, **fields}, message)

    def _take_step(self, app: App, options: dict[str, Any]) -> tuple[dict[str, str], str]:
        if options["retire"]:
            retire_old_key(self.actor, app)
            return {"step": "retired"}, f"Notifications to {app} are now signed with the new key only."
        if options["cancel"]:
            cancel_key_rotation(self.actor, app)
            return {"step": "cancelled"}, f"{app} keeps its old key. The new one was discarded."
        given = secret_from_stdin("key") if options["client_auth_key_stdin"] else ""
        new_key = start_key_rotation(self.actor, app, given)
        message = f"The new signing key of {app}. Save it; it is not shown again:\n  {new_key}"
        return {"step": "started", "client_auth_key": new_key}, message
