from typing import Any

from django.core.management.base import CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of, watches_of
from deliveries_app.models import AppRepository
from deliveries_app.reports.impact import impact_of
from deliveries_app.services import AlreadyWatched, watch_repository
from deliveries_app.services.watching import registered_fields
from docora.cli.output import add_json, add_yes, confirm, secret_from_stdin, write_result
from repositories_app.git.url import as_https


class Command(ServiceCommand):
    help = (
        "Watches a repository for an app, after checking with git that it can be read. If the app already watches it, "
        "replaces its token (or removes it, if none is given) and sends ALL its files again."
    )

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
        add_yes(parser)
        parser.epilog = "Private repository: watch_repository APP_ID URL --github-token-stdin < token.txt"

    def handle(self, *args: Any, **options: Any) -> None:
        app = app_of(options["app_id"])
        token = secret_from_stdin("token") if options["github_token_stdin"] else ""
        url = as_https(options["url"])
        try:
            watched = watch_repository(
                self.actor, app, url, must_be_new=not options["yes"], github_token=token, ref=options["ref"]
            )
        except AlreadyWatched as error:
            confirm(_question(error.watch, token, options["ref"]), yes=False)
            watched = watch_repository(self.actor, app, url, github_token=token, ref=options["ref"])
        repository = f"{watched.watch.repository} ({watched.watch.repository.repository_id})"
        message = f"{app.name} already watched {repository}. Every file is sent again."
        if watched.created:
            message = f"{app.name} now watches {repository}."
        write_result(self, options, registered_fields(watched.watch), message)


def _question(watch: AppRepository, token: str, ref: str) -> str:
    """Return the question for a repository that the app already watches.

    Its token becomes the given one, or none. Without a `ref`, it keeps its branch or tag.
    """
    impact = impact_of(watches_of(watch.app).filter(pk=watch.pk))
    token_change = "replace its token and " if token else "remove its token and " if watch.github_token else ""
    ref_change = f"switch it to {ref} and " if ref and ref != watch.ref else ""
    return (
        f"{watch.app} already watches {watch.repository}. This will {token_change}{ref_change}send ALL "
        f"{impact.amount} again."
    )
