from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, watch_of
from deliveries_app.reports.file_explanation import explain
from docora.cli.output import add_json, write_result
from docora.text import format_time, printable


class Command(ServiceCommand):
    help = "Explains why a file of a watched repository was or was not sent, and when Docora tries it next."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("repository_id", help="see list_watches")
        parser.add_argument("path", help="path in the repository, such as docs/index.md")
        add_json(parser, "path, state, message, next, next_at")

    def handle(self, *args: Any, **options: Any) -> None:
        watch = watch_of(options["app_id"], options["repository_id"])
        explanation = explain(self.actor, watch, options["path"])
        following = explanation.next_attempt
        fields = {
            "path": options["path"],
            "state": explanation.decision.state,
            "message": explanation.decision.message,
            "next": following.message if following else None,
            "next_at": following.at if following else None,
        }
        message = printable(explanation.decision.message)
        if following:
            at = f" at {format_time(following.at)}" if following.at else ""
            message += f"\n{following.message.capitalize()}{at}."
        write_result(self, options, fields, message)
