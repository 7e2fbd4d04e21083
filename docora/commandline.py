"""The command line: what has to be known before the settings are read, then Django's own commands.

`up`, `web` and `demo` take options that are settings (`--data`, `--host`, `--port`, `--demo`). They are put into the
environment first, so that this process, its children and every other command of the same folder see one configuration.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

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


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "docora.settings")
    apply_instance_options(sys.argv[1:])
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        raise SystemExit(f"Docora cannot start: {error}") from None
