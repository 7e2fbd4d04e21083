"""System checks: what would keep Docora from working on this machine, each with an id."""

import re
import subprocess
from typing import Any

from django.core.checks import CheckMessage, Error, register

MIN_GIT = (2, 38)  # `cat-file -z` and the fixes of the `safe.directory` era


def git_version() -> tuple[int, ...] | None:
    """The version of the git on PATH, None when there is none."""
    try:
        output = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", output)
    return tuple(int(part) for part in found.groups() if part) if found else None


@register
def check_git(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    wanted = ".".join(map(str, MIN_GIT))
    version = git_version()
    if version is None:
        return [
            Error(
                f"git was not found. Docora needs git {wanted} or newer; install it (apt install git).",
                id="docora.E001",
            )
        ]
    if version < MIN_GIT:
        found = ".".join(map(str, version))
        return [Error(f"git is {found}, but Docora needs {wanted} or newer; upgrade it.", id="docora.E002")]
    return []
