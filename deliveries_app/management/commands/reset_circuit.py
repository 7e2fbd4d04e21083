from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, repository_of
from deliveries_app.services.control import reset_circuits
from docora.cli.output import add_json, write_result
from docora.text import counted


class Command(ServiceCommand):
    help = "Closes the circuit breaker that opened after a repository failed repeatedly, and tries the repository now."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("repository_id", help="see list_watches")
        add_json(parser, "repository_id, woken (the number of watches that are now due)")

    def handle(self, *args: Any, **options: Any) -> None:
        repository = repository_of(options["repository_id"])
        woken = reset_circuits(self.actor, [repository])
        message = f"Reset the circuit of {repository}. It is now due for {counted(woken, 'app')}."
        write_result(self, options, {"repository_id": repository.repository_id, "woken": woken}, message)
