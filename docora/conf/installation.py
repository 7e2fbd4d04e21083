"""The location of Docora's files, the name of its command and its build, in a checkout or when installed from the wheel.

Does not depend on the settings.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from functools import cache
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from environ import Env

from docora import __version__

_PACKAGE = Path(__file__).resolve().parent.parent
_SETTING = re.compile(r"(export )?\w+=", re.ASCII)

INSTALLED = (_PACKAGE / "templates").is_dir()
"""Whether Docora was installed from the wheel, which has `templates` inside the package instead of beside it."""

FILES = _PACKAGE if INSTALLED else _PACKAGE.parent
"""The folder that contains `templates`, `static` and `.env.example`."""

original_environment: dict[str, str] = {}
"""The environment without the settings in `.env`, for child processes that read `.env` themselves."""


def env_file() -> Path:
    """Return the path of `.env`: in the checkout, or in the current folder if installed from the wheel."""
    return Path(os.environ.get("DOCORA_ENV_FILE") or (Path.cwd() if INSTALLED else FILES) / ".env")


@cache
def read_env_file() -> None:
    """Add the settings in `.env` to the environment, without replacing variables that are set. Only the first call reads it."""
    original_environment.update(os.environ)
    file = env_file()
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ImproperlyConfigured(f"The settings in {file} cannot be read: the file is not UTF-8.") from None
    except OSError as error:
        # An existing or explicitly named file must not be skipped: Docora would start as an empty instance without it.
        if not isinstance(error, FileNotFoundError) or "DOCORA_ENV_FILE" in original_environment:
            raise ImproperlyConfigured(
                f"The settings in {file} cannot be read: {error.strerror}. Make it readable for Docora's user, and run commands as that user."
            ) from None
        return
    settings = {number: line for number, line in enumerate(map(str.lstrip, lines), 1) if line and line[0] != "#"}
    for number, line in settings.items():
        if not _SETTING.match(line):  # `read_env` would skip the line and log it, which may hold a secret
            raise ImproperlyConfigured(
                f"Line {number} of {file} is not a setting such as PORT=8000. Write no spaces before the equals sign."
            )
    Env.read_env(io.StringIO("\n".join(settings.values())))


def choose_settings() -> None:
    """Tell Django which settings module to use: that of `DOCORA_SETTINGS`, or Docora's own.

    The module can be in the folder of `.env` or in any other folder from which Python imports. Raises ImproperlyConfigured
    if it cannot be imported.
    """
    with contextlib.suppress(ImproperlyConfigured):  # the settings raise it again; `help` works without them
        read_env_file()
    if env_file().is_file():
        sys.path.append(str(env_file().absolute().parent))
    module = os.environ.get("DOCORA_SETTINGS")
    if module and "DJANGO_SETTINGS_MODULE" not in os.environ:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImproperlyConfigured(f"DOCORA_SETTINGS names {module}, which cannot be imported: {error}.") from error
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", module or "docora.settings")


def program(*, in_full: bool = False) -> str:
    """Return the name of the command for messages or, with `in_full`, the command to type in the folder of a checkout.

    A wrapper script, such as the one for the systemd units, sets `DOCORA_PROGRAM` to its own name.
    """
    if name := os.environ.get("DOCORA_PROGRAM"):
        return name
    if INSTALLED or Path(sys.argv[0]).name == "docora":
        return "docora"
    return ".venv/bin/python manage.py" if in_full else "manage.py"


def build() -> dict[str, str]:
    """Return the version and the build, as `/version` shows them."""
    return {
        "version": __version__,
        "buildNumber": os.environ.get("DOCORA_BUILD_NUMBER", ""),
        "gitSha": os.environ.get("DOCORA_BUILD_SHA", ""),
        "buildDate": os.environ.get("DOCORA_BUILD_DATE", ""),
    }
