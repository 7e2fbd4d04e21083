from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries_app.management.lookup import ServiceCommand, app_of, watch_of
from deliveries_app.management.progress import polls, seconds
from deliveries_app.models import DriftCheck, DriftState
from deliveries_app.reports import drift
from deliveries_app.services import check_app, check_watch
from docora.cli.output import INTERRUPTED, Bar, add_json, write_json
from docora.text import counted, printable


class Command(ServiceCommand):
    help = "Checks an app's copies for differences and prints the differences; exit 1 unless all copies are equal."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_id", help="see list_apps")
        parser.add_argument("repository_id", nargs="?", help="see list_watches; all repositories of the app if omitted")
        parser.add_argument(
            "--timeout", type=seconds, metavar="SECONDS", help="stop waiting after this time; the checks continue"
        )
        add_json(parser, "app_id, repository_id, state, message, commit, compared, missing, different, extra, files")

    def handle(self, *args: Any, **options: Any) -> None:
        pks = self._request(options["app_id"], options["repository_id"])
        try:
            ended = _wait(pks, options["timeout"], quiet=options["json"])
        except KeyboardInterrupt:
            self.stderr.write("The checks continue.")
            raise SystemExit(INTERRUPTED) from None
        found = DriftCheck.objects.for_list().filter(pk__in=pks)
        checks = drift.with_watches(found.order_by("watch__repository__owner", "watch__repository__name", "pk"))
        for check in checks:
            self._print(check, as_json=options["json"])
        if not ended:
            raise CommandError(f"Not finished after {options['timeout']:g} seconds. The checks continue.")
        unequal = sum(check.state != DriftState.EQUAL for check in checks)
        if unequal:
            copies, differ = counted(len(checks), "copy"), "differs" if unequal == 1 else "differ"
            raise CommandError(f"{unequal:,} of {copies} {differ} or could not be checked.")

    def _print(self, check: DriftCheck, *, as_json: bool) -> None:
        files = check.files.order_by("path")
        if as_json:
            fields = {
                "app_id": check.watch.app.app_id,
                "repository_id": check.watch.repository.repository_id,
                "state": check.state,
                "message": drift.summary(check),
                "commit": check.commit_sha,
                "compared": check.compared,
                "missing": check.missing,
                "different": check.different,
                "extra": check.extra,
                "files": [{"path": file.path, "difference": file.kind, "sha": file.sha or None} for file in files],
            }
            write_json(self.stdout, fields)
            return
        state = check.get_state_display()
        self.stdout.write(printable(f"{check.watch.repository}: {state}. {drift.summary(check)}"))
        for file in files:
            self.stdout.write(printable(f"  {file.kind:<9}  {file.path}"))
        if check.differences > check.listed:
            self.stdout.write(f"  and {check.differences - check.listed:,} more")

    def _request(self, app_id: str, repository_id: str | None) -> list[int]:
        """Request the checks, and return their primary keys."""
        if repository_id is not None:
            return [check_watch(self.actor, watch_of(app_id, repository_id)).pk]
        return check_app(self.actor, app_of(app_id))


def _wait(pks: list[int], timeout: float | None, *, quiet: bool) -> bool:
    """Wait until all checks have ended. Return False if the timeout expires first."""
    with Bar(quiet=quiet) as bar:
        for _ in polls(timeout):
            left = DriftCheck.objects.open().filter(pk__in=pks).count()
            bar.show("Repositories", len(pks) - left, len(pks))
            if not left:
                return True
    return False
