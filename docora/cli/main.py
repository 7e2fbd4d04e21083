"""The command line: options that have to be known before the settings are read, then Django's own commands.

`up`, `web` and `demo` take options that are settings (`--data`, `--host`, `--port`, `--demo`). They are put into the
environment first, so that this process, its children and every other command of the same folder see one configuration.
"""

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from django.core.management import ManagementUtility
from django.core.management.base import BaseCommand

from docora import __version__
from docora.cli.output import BROKEN_PIPE, INTERRUPTED, USAGE
from docora.conf.installation import program

# Demo repositories and the demo client are on this machine, over plain http.
DEMO_SETTINGS = {
    "ALLOW_HTTP": "yes",
    "ALLOWED_PRIVATE_NETWORKS": "127.0.0.0/8",
    "ALLOWED_GIT_HOSTS": "github.com,127.0.0.1",
}


def add_instance_options(parser: ArgumentParser) -> None:
    """The options of `up`, `web` and `demo` that stand for settings."""
    parser.add_argument("--host", metavar="HOST", help="listen on this address (HOST)")
    parser.add_argument("--port", metavar="N", help="listen on this port (PORT)")
    parser.add_argument("--data", metavar="DIR", help="the data directory (DATA_DIR)")


def apply_instance_options(arguments: Sequence[str]) -> None:
    """Put the options of an `up`, `web` or `demo` command line into the environment; other commands are left alone."""
    if not arguments or arguments[0] not in {"up", "web", "demo"}:
        return
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    add_instance_options(parser)
    parser.add_argument("--demo", action="store_true")
    known, _ = parser.parse_known_args(arguments[1:])
    for name, value in {"HOST": known.host, "PORT": known.port, "DATA_DIR": known.data}.items():
        if value is not None:
            os.environ[name] = value
    if known.demo or arguments[0] == "demo":
        for name, value in DEMO_SETTINGS.items():
            os.environ.setdefault(name, value)


def sentence_of(error: Exception) -> str:
    """What a person at the command line is told instead of a traceback; empty for what nobody has foreseen."""
    from django.core.exceptions import ImproperlyConfigured
    from django.db import DatabaseError, InterfaceError, OperationalError

    from docora.redis.connection import RedisError
    from docora.security.crypto import DecryptionError
    from docora.security.redaction import redact

    cause = redact(next(iter(str(error).strip().splitlines()), "")).rstrip(".")
    match error:
        case ImproperlyConfigured():
            return f"Docora cannot start: {error}"
        case DatabaseError() if re.search("no such (table|column)|(relation|column) .* does not exist", cause):
            return f"The database is not that of this version ({cause}). Migrate it: {program()} migrate"
        case OperationalError() | InterfaceError():
            return f"The database cannot be used: {cause}. Check DATABASE_URL, and whether it runs."
        case RedisError():
            return f"Redis does not answer: {cause}. Check REDIS_URL, and whether it runs."
        case DecryptionError():
            return str(error)
    return ""


class CommandLine(ManagementUtility):
    """Django's, except that an unknown command ends with the exit code for wrong usage."""

    def fetch_command(self, subcommand: str) -> BaseCommand:
        try:
            return super().fetch_command(subcommand)
        except SystemExit:  # Django has already printed the error
            raise SystemExit(USAGE) from None


def main() -> None:
    if sys.argv[1:] in (["--version"], ["version"]):
        sys.stdout.write(f"{__version__}\n")  # Django would tell its own
        return
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "docora.settings")
    sys.path.append(str(Path.cwd()))  # FILE_TRANSFORMS may lie there; the children of `up` look there anyway
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("DJANGO_COLORS", "nocolor")
    apply_instance_options(sys.argv[1:])

    try:
        try:
            CommandLine([program(), *sys.argv[1:]]).execute()
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read the answer has seen enough. Nothing is left for Python to write at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(BROKEN_PIPE) from None
    except Exception as error:
        words = sentence_of(error)
        if not words or "--traceback" in sys.argv:
            raise
        raise SystemExit(words) from None
