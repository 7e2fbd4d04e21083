from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, operation_of
from deliveries_app.services import continue_operation
from docora.cli.output import add_json, write_result
from docora.text import counted


class Command(ServiceCommand):
    help = "Continues a re-sync that is held because its first repository did not succeed: sends the other repositories anyway."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="the bulk operation's id (bulk_…)")
        add_json(parser, "continued (the number of repositories)")
        parser.epilog = "Example: continue_resync bulk_0123456789abcdef"

    def handle(self, *args: Any, **options: Any) -> None:
        continued = continue_operation(self.actor, operation_of(options["id"]))
        repositories = counted(continued, "repository")
        message = f"Continued with {repositories}." if continued else "The operation is not held."
        write_result(self, options, {"continued": continued}, message)
