"""`manage.py receiver`: run the reference client in a terminal, to see what an app receives."""

import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from deliveries_app.receiver import Receiver, Record
from docora.cli.output import add_json, number_between, secret_from_stdin, write_json
from docora.conf.installation import program
from docora.security.crypto import new_webhook_key
from docora.text import printable


class Command(BaseCommand):
    help = "Receives notifications as a client app does: verifies them, keeps a copy on disk, and prints what arrives."
    requires_system_checks = []  # a client has no access to Docora's database and Redis

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--port", type=number_between(0, 65_535), default=9000, metavar="N", help="the port to listen on (9000)"
        )
        parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
        key = parser.add_mutually_exclusive_group()
        key.add_argument("--key", help="the app's client_auth_key; if omitted, a new key is generated and printed")
        key.add_argument(
            "--key-stdin", action="store_true", help="read the key from stdin, which hides it from process lists"
        )
        parser.add_argument("--dir", type=Path, help="directory for the copies (DATA_DIR/receiver)")
        add_json(parser, f"one line per notification: {', '.join(Record.__annotations__)}")
        parser.add_argument("--quiet", action="store_true", help="print only refused notifications")

    def handle(self, *args: Any, **options: Any) -> None:
        directory: Path = options["dir"] or settings.DATA_DIR / "receiver"
        given: str | None = secret_from_stdin("key") if options["key_stdin"] else options["key"]
        key = given or new_webhook_key()
        self.quiet: bool = options["quiet"]
        self.as_json: bool = options["json"]
        self.output_closed = threading.Event()
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
        except (OSError, TypeError) as error:  # the latter for a host name that cannot be encoded
            reason = (getattr(error, "strerror", "") or str(error)).rstrip(".")
            raise CommandError(f"Cannot listen on {options['host']} port {options['port']}: {reason}.") from None
        with receiver:
            out = self.stderr if self.as_json else self.stdout
            out.write(f"Listening on {receiver.url}, copies in {receiver.directory}")
            if not given:
                onboard = f"{program()} onboard_app NAME {receiver.url} EMAIL --client-auth-key {key}"
                out.write(f"No key was given, so one was generated. Onboard an app with it:\n  {onboard}")
            try:
                self.output_closed.wait()
            except KeyboardInterrupt:
                out.write("")
                return
        raise BrokenPipeError

    def _print(self, record: Record) -> None:
        if self.quiet and record.status < 400:
            return
        try:
            if self.as_json:
                write_json(self.stdout, asdict(record))
            else:
                self.stdout.write(describe(record))
                self.stdout.flush()
        except BrokenPipeError:  # raised in a connection's thread; the main thread ends the command
            self.output_closed.set()


def describe(record: Record) -> str:
    """Return one line that says what was received and how it was handled."""
    if not record.verified:
        return f"{printable(record.kind):<14} refused ({record.status}): {record.outcome}"
    parts = [f"{record.kind:<14}", record.repository]
    if record.path:
        parts.append(printable(record.path))
    if record.kind in ("create", "update"):
        parts.append(f"{record.size:,} bytes")
    if record.chunk:
        parts.append(f"chunk {record.chunk.index + 1}/{record.chunk.total}")
    if record.sha:
        parts.append(record.sha[:8])
    parts.append("verified" if record.status < 400 else f"verified, refused ({record.status})")
    return "  ".join([*filter(None, parts), record.outcome])
