import sys
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import refusal, watch_of
from deliveries_app.services.requests import NotFound
from deliveries_app.services.watch_settings import replace_github_token
from docora.cli.output import add_json, write_json
from repositories_app.git.exceptions import GitError


class Command(BaseCommand):
    help = (
        "Reads a watched repository with another token, which comes from stdin, after trying it. None if it is empty."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="as list_apps shows it")
        parser.add_argument("repository_id", help="as list_watches shows it")
        add_json(parser, "app_id, repository_id")
        parser.epilog = "Example: replace_github_token APP_ID REPOSITORY_ID < token.txt"

    def handle(self, *args: Any, **options: Any) -> None:
        watch = watch_of(options["app_id"], options["repository_id"])
        if sys.stdin.isatty():
            self.stderr.write("The token, and Enter:", self.style.NOTICE)
        try:
            replace_github_token(Actor.command(), watch, sys.stdin.readline().strip())
        except (ValidationError, GitError, NotFound) as error:
            raise refusal(error) from None
        if options["json"]:
            write_json(self.stdout, {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id})
        else:
            self.stdout.write(f"{watch.repository} is read with it for {watch.app}, and is synced now.")
