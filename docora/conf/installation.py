"""Where Docora's own files lie, and what its command line is called: in a checkout, and installed from the wheel.

The settings are made from it.
"""

import os
import sys
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from environ import Env

_PACKAGE = Path(__file__).resolve().parent.parent

INSTALLED = (_PACKAGE / "templates").is_dir()
"""The wheel has them inside the package; in a checkout they lie beside it."""

FILES = _PACKAGE if INSTALLED else _PACKAGE.parent
"""The folder of `templates`, `static` and `.env.example`."""

given: dict[str, str] = {}
"""The environment before the settings put `.env` into it: for a process that is to read that file for itself."""


def env_file() -> Path:
    """The file of settings: that of the checkout, or, installed, of the current folder."""
    return Path(os.environ.get("DOCORA_ENV_FILE") or (Path.cwd() if INSTALLED else FILES) / ".env")


def read_env_file() -> None:
    """Put the file of settings into the environment, which wins."""
    given.update(os.environ)
    file = env_file()
    try:
        with file.open() as lines:
            Env.read_env(lines)
    except OSError as error:
        # One that is there, or is named, holds what must not be left out: without it this would be another, empty Docora.
        if not isinstance(error, FileNotFoundError) or "DOCORA_ENV_FILE" in given:
            problem = f"The settings in {file} cannot be read: {error.strerror}. Commands run as Docora's user."
            raise ImproperlyConfigured(problem) from None


def program(*, in_full: bool = False) -> str:
    """What messages call the command line. `in_full` is what a shell understands in the checkout's folder.

    `DOCORA_PROGRAM` is how it is called where a command stands in its place, as beside the systemd units."""
    if called := os.environ.get("DOCORA_PROGRAM"):
        return called
    if INSTALLED or Path(sys.argv[0]).name == "docora":
        return "docora"
    return ".venv/bin/python manage.py" if in_full else "manage.py"
