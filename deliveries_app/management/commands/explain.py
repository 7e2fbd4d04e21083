from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import watch_of
from deliveries_app.reports.file_explanation import explain
from docora.cli.output import add_json, moment, plain, write_json


class Command(BaseCommand):
    help = "Says why a file of a watched repository was sent, or not, and when it is tried next."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="as list_apps shows it")
        parser.add_argument("repository_id", help="as list_watches shows it")
        parser.add_argument("path", help="of the file in the repository, such as docs/index.md")
        add_json(parser, "path, state, words, next, next_at")

    def handle(self, *args: Any, **options: Any) -> None:
        watch = watch_of(options["app_id"], options["repository_id"])
        told = explain(Actor.command(), watch, options["path"])
        next_try = told.tried_next
        facts = {
            "path": options["path"],
            "state": told.verdict.state,
            "words": told.verdict.words,
            "next": next_try.words if next_try else None,
            "next_at": next_try.at if next_try else None,
        }
        if options["json"]:
            write_json(self.stdout, facts)
            return
        self.stdout.write(plain(told.verdict.words))
        if next_try:
            at = f" at {moment(next_try.at)}" if next_try.at else ""
            self.stdout.write(f"{next_try.words.capitalize()}{at}.")
