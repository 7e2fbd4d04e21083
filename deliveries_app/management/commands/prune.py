from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from deliveries_app.sweep.retention import prune
from docora.cli.output import Bar, add_json, write_result
from docora.text import counted

_LABELS = {
    "runs": ("sync run", "sync runs"),
    "operations": ("bulk operation", "bulk operations"),
    "checks": ("check for differences", "checks for differences"),
    "audit_entries": ("audit log entry", "audit log entries"),
    "traffic": ("hour of traffic", "hours of traffic"),
    "alerts": ("alert", "alerts"),
    "sessions": ("session", "sessions"),
    "delivery_attempts": ("failed attempt", "failed attempts"),
    "mails": ("email to an app's contact", "emails to apps' contacts"),
    "snapshots": ("snapshot", "snapshots"),
}


class Command(BaseCommand):
    help = (
        "Removes history older than the …_RETENTION_DAYS settings, expired sessions, emails to apps' contacts after a week, "
        "sent or not, and the sizes of all commits but each repository's newest (snapshots). A worker also does this once an "
        "hour."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only print how much would be removed")
        add_json(parser, f"dry_run, and the numbers of {', '.join(_LABELS)}")

    def handle(self, *args: Any, **options: Any) -> None:
        with Bar(quiet=options["json"]) as bar:
            pruned = prune(dry_run=options["dry_run"], on_progress=lambda count: bar.show("Removed", count))
        parts = [counted(pruned[name], *labels) for name, labels in _LABELS.items() if pruned[name]]
        verb = "Would be removed" if options["dry_run"] else "Removed"
        message = f"{verb}: {', '.join(parts) or 'nothing'}."
        numbers = {name: pruned[name] for name in _LABELS}
        write_result(self, options, {"dry_run": options["dry_run"], **numbers}, message)
