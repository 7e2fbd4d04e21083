"""`manage.py receiver`: the reference client in a terminal, to see with one's own eyes what an app is sent."""

import base64
import secrets
import threading
from pathlib import Path
from typing import Any, override

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.receiver import Receiver, Record
from docora.installation import program


class Command(BaseCommand):
    help = "Receive notifications as a client app would: verify them, keep a copy on disk, print what came."
    requires_system_checks = []  # a client runs without Docora's database and Redis

    @override
    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--port", type=int, default=9000, help="the port to listen on (9000)")
        parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
        parser.add_argument("--key", help="the app's client_auth_key; without one, a new key is made and printed")
        parser.add_argument("--dir", type=Path, help="where the copies are kept (DATA_DIR/receiver)")
        parser.add_argument("--quiet", action="store_true", help="print nothing but refusals")

    @override
    def handle(self, *args: Any, **options: Any) -> None:
        directory: Path = options["dir"] or Path(settings.DATA_DIR) / "receiver"
        key: str = options["key"] or _new_key()
        self.quiet: bool = options["quiet"]
        receiver = Receiver(
            directory.absolute(),
            key,
            host=options["host"],
            port=options["port"],
            on_record=self._print,
            log_size=0,
        )
        try:
            receiver.start()
        except (OSError, OverflowError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            raise CommandError(f"Cannot listen on {options['host']} port {options['port']}: {reason}.") from None
        with receiver:
            self.stdout.write(f"Listening on {receiver.url}, copies in {receiver.directory}")
            if not options["key"]:
                self.stdout.write(
                    f"No --key was given, so one was made. Onboard an app that uses it:\n  {_hint(receiver.url, key)}"
                )
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                self.stdout.write("")

    def _print(self, record: Record) -> None:
        if not self.quiet or record.status >= 400:
            self.stdout.write(describe(record))
            self.stdout.flush()


def describe(record: Record) -> str:
    """Say on one line what was received and what became of it."""
    if not record.verified:
        return f"{_plain(record.kind):<14} refused ({record.status}): {record.outcome}"
    parts = [f"{record.kind:<14}", record.repository]
    if record.path:
        parts.append(_plain(record.path))
    if record.kind in ("create", "update"):
        parts.append(f"{record.size:,} bytes")
    if record.chunk:
        parts.append(f"chunk {record.chunk.index + 1}/{record.chunk.total}")
    if record.sha:
        parts.append(record.sha[:8])
    parts.append("verified" if record.status < 400 else f"verified, refused ({record.status})")
    return "  ".join([*filter(None, parts), record.outcome])


def _plain(text: str) -> str:
    """Return text from the wire so that it cannot steer a terminal, nor start a new line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _new_key() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def _hint(url: str, key: str) -> str:
    return f"{program()} onboard_app NAME {url} EMAIL --client-auth-key {key}"
