from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries_app.management import progress
from deliveries_app.management.lookup import ServiceCommand, app_of, watch_of, watches_of
from deliveries_app.reports.impact import impact_of
from deliveries_app.services import MAX_PACE, Rollout, resync_by_app, resync_single
from docora.cli.output import add_yes, confirm, number_between, wrong_usage
from docora.text import counted


class Command(ServiceCommand):
    help = "Sends ALL files of an app's repositories again, or of one of them. To send only what failed, use retry."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("repository_id", nargs="?", help="see list_watches; all repositories of the app if omitted")
        parser.add_argument(
            "--canary", action="store_true", help="sync one repository first, then the rest if it succeeds"
        )
        parser.add_argument(
            "--pace", type=number_between(1, MAX_PACE), metavar="N", help="release at most N repositories per minute"
        )
        progress.add_options(parser)
        add_yes(parser)
        parser.epilog = "For scripts: resync APP_ID --yes --wait --timeout 3600 --json"

    def handle(self, *args: Any, **options: Any) -> None:
        progress.check_options(options)
        rollout = Rollout(canary=options["canary"], pace=options["pace"])
        app_id, repository_id = options["app_id"], options["repository_id"]
        if repository_id is not None and rollout.is_gradual:
            raise wrong_usage("--canary and --pace are for all repositories of an app.")
        watch = watch_of(app_id, repository_id) if repository_id is not None else None
        app = watch.app if watch else app_of(app_id)
        watches = watches_of(app)
        impact = impact_of(watches.filter(pk=watch.pk) if watch else watches)
        if not impact.sample:  # which is read last: another request may have removed the watches meanwhile
            none = f"{app} no longer watches {watch.repository}." if watch else "The app watches no repository."
            raise CommandError(none)
        several = f"all {counted(impact.watches, 'repository')}"
        what = several if impact.watches > 1 else str(impact.sample[0].repository)
        question = f"This will re-sync {what} for {app} and send ALL {impact.amount} again."
        confirm(question, yes=options["yes"])
        requested = resync_single(self.actor, watch) if watch else resync_by_app(self.actor, app, rollout=rollout)
        progress.follow(self, requested, options)
