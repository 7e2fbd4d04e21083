from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of, command_error
from deliveries_app.services import watch_repository
from docora.cli.output import add_json, secret_from_stdin, write_json
from repositories_app.git.exceptions import GitError, InvalidUrl


class Command(BaseCommand):
    help = "Watches a repository for an app, after checking with git that it can be read."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("url", help="repository URL, such as https://github.com/acme/docs")
        parser.add_argument("--github-token-stdin", action="store_true", help="read the repository's token from stdin")
        add_json(parser, "repository_id, github_url, owner, name, is_private, created_at")
        parser.epilog = "Private repository: watch_repository APP_ID URL --github-token-stdin < token.txt"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        token = secret_from_stdin("token") if options["github_token_stdin"] else ""
        try:
            watched = watch_repository(Actor.command(), app, options["url"], token)
        except (ValidationError, InvalidUrl, GitError) as error:
            raise command_error(error) from None
        if options["json"]:
            write_json(self.stdout, watched.as_dict())
            return
        repository = f"{watched.watch.repository} ({watched.watch.repository.repository_id})"
        if watched.created:
            self.stdout.write(f"{app.name} now watches {repository}.")
        else:
            self.stdout.write(f"{app.name} already watched {repository}. Every file is sent again.")
