from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of, watches_of
from deliveries_app.reports.impact import removal_of
from deliveries_app.services import delete_app
from docora.cli.output import add_json, add_yes, confirm, write_json
from docora.text import counted


class Command(BaseCommand):
    help = "Removes a client app with all that it watches. It keeps its files, and is told nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="as list_apps shows it")
        add_json(parser, "app_id, watches, the number of those that ended")
        add_yes(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        removal = removal_of(watches_of(app))
        about = "" if removal.records_are_exact else "about "
        question = (
            f"{app} and its token will be unknown at once. It watches "
            f"{counted(removal.watches, 'repository', 'repositories')}, of which {removal.orphans:,} "
            f"{'is' if removal.orphans == 1 else 'are'} watched by nobody else; "
            f"{about}{counted(removal.records, 'delivery record goes', 'delivery records go')}."
        )
        confirm(question, yes=options["yes"])
        delete_app(Actor.command(), app)
        if options["json"]:
            write_json(self.stdout, {"app_id": app.app_id, "watches": removal.watches})
        else:
            self.stdout.write(f"{app} is removed.")
