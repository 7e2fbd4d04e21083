from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import repository_of
from deliveries_app.services.control import reset_circuit
from docora.cli.output import add_json, write_json


class Command(BaseCommand):
    help = "Closes the circuit of a repository that was left alone after failures, so that it is tried at once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("repository_id", help="as list_watches shows it")
        add_json(parser, "repository_id, woken, the number of watches that are tried")

    def handle(self, *args: Any, **options: Any) -> None:
        repository = repository_of(options["repository_id"])
        woken = reset_circuit(Actor.command(), repository)
        if options["json"]:
            write_json(self.stdout, {"repository_id": repository.repository_id, "woken": woken})
        else:
            apps = "the one app that watches" if woken == 1 else f"all {woken:,} apps that watch"
            self.stdout.write(f"{repository} is tried at once for {apps} it.")
