import json
import sys
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.actors import Actor
from deliveries_app.models import App
from deliveries_app.services import watch
from repositories_app.exceptions import GitError, InvalidUrl


class Command(BaseCommand):
    help = "Lets an app watch a repository, after asking git whether it can be read."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id")
        parser.add_argument("url")
        parser.add_argument("--github-token-stdin", action="store_true", help="read the repository's token from stdin")
        parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        app = App.objects.filter(app_id=options["app_id"], ended_at=None).first()
        if app is None:
            raise CommandError(f"There is no app {options['app_id']}.")
        token = sys.stdin.readline().strip() if options["github_token_stdin"] else ""
        try:
            watched = watch(Actor.command(), app, options["url"], token)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        except (InvalidUrl, GitError) as error:
            raise CommandError(str(error)) from None
        if options["json"]:
            self.stdout.write(json.dumps(watched.as_dict()))
            return
        verb = "watches" if watched.created else "watched already, and everything is sent again:"
        self.stdout.write(f"{app.name} {verb} {watched.pair.repository} ({watched.pair.repository.repository_id})")
