from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of, watches_of
from deliveries_app.reports.impact import Removal, removal_of
from deliveries_app.services import delete_app
from docora.cli.output import add_json, add_yes, confirm, write_result
from docora.text import counted


class Command(ServiceCommand):
    help = "Removes a client app and its watches. The app keeps its files and is not notified."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        add_json(parser, "app_id, watches (the number removed)")
        add_yes(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        removal = removal_of(watches_of(app))
        question = (
            f"{app} will be removed and its token revoked now. It watches "
            f"{counted(removal.watches, 'repository')}{_orphans(removal)}. "
            f"This deletes {removal.records_text}."
        )
        confirm(question, yes=options["yes"])
        delete_app(self.actor, app)
        write_result(self, options, {"app_id": app.app_id, "watches": removal.watches}, f"Removed {app}.")


def _orphans(removal: Removal) -> str:
    """Say how many of the repositories no other app watches; their mirrors are removed."""
    if removal.watches == 1:
        return ", which no other app watches" if removal.orphans else ", which other apps watch too"
    if removal.orphans == removal.watches:
        return "; no other app watches them" if removal.watches else ""
    return f"; no other app watches {removal.orphans:,} of them" if removal.orphans else "; other apps watch them too"
