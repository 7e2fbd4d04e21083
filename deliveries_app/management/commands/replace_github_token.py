import sys
from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, watch_of
from deliveries_app.services import change_watch
from docora.cli.output import add_json, secret_from_stdin, write_result


class Command(ServiceCommand):
    help = "Replaces the token with which Docora reads a watched repository, after checking it. Reads the new token from stdin."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("repository_id", help="see list_watches")
        parser.add_argument(
            "--remove", action="store_true", help="read the repository without a token of its own from now on"
        )
        add_json(parser, "app_id, repository_id")
        parser.epilog = "Example: replace_github_token APP_ID REPOSITORY_ID < token.txt"

    def handle(self, *args: Any, **options: Any) -> None:
        watch = watch_of(options["app_id"], options["repository_id"])
        if options["remove"]:
            token = ""
        else:
            if sys.stdin.isatty():
                self.stderr.write("Type the token and press Enter:", self.style.NOTICE)
            token = secret_from_stdin("token")
        change_watch(self.actor, watch, github_token=token)
        ids = {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}
        done = "Replaced" if token else "Removed"
        write_result(self, options, ids, f"{done} the token of {watch.repository} for {watch.app}. A sync is queued.")
