from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.management.lookup import app_of, command_errors
from deliveries_app.services import watch_repository
from docora.cli.output import add_json, secret_from_stdin, write_result
from repositories_app.git.url import as_https


class Command(BaseCommand):
    help = "Watches a repository for an app, after checking with git that it can be read."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument(
            "url", help="repository URL, such as https://github.com/acme/docs or git@github.com:acme/docs"
        )
        parser.add_argument("--github-token-stdin", action="store_true", help="read the repository's token from stdin")
        parser.add_argument(
            "--ref", default="", help="branch or tag, such as main or v1.2 (default: the default branch)"
        )
        add_json(parser, "repository_id, github_url, owner, name, is_private, created_at")
        parser.epilog = "Private repository: watch_repository APP_ID URL --github-token-stdin < token.txt"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        token = secret_from_stdin("token") if options["github_token_stdin"] else ""
        with command_errors():
            watched = watch_repository(Actor.command(), app, as_https(options["url"]), token, options["ref"])
        repository = f"{watched.watch.repository} ({watched.watch.repository.repository_id})"
        message = f"{app.name} already watched {repository}. Every file is sent again."
        if watched.created:
            message = f"{app.name} now watches {repository}."
        write_result(self, options, watched.as_dict(), message)
