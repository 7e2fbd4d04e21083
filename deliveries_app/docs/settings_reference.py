"""Parse `.env.example` for the documentation.

That file lists all settings with their defaults. A test compares it with `settings.py`.
"""

import re

from django.conf import settings

_SECTION = re.compile(r"# --- (.+?) -+")
_SETTING = re.compile(r"# ([A-Z][A-Z_]+)=(.*)")


type Group = tuple[str, dict[str, str]]
"""A comment, and the settings below it: name → default, which may be empty."""


def sections() -> list[tuple[str, list[Group]]]:
    """Return the title and the groups of each section of `.env.example`. Empty if the file was not deployed."""
    path = settings.BASE_DIR / ".env.example"
    return parse(path.read_text(encoding="utf-8")) if path.exists() else []


def parse(text: str) -> list[tuple[str, list[Group]]]:
    """Parse the file. A comment describes the settings below it, up to the next comment."""
    found: list[tuple[str, list[Group]]] = []
    description: list[str] = []
    for line in text.splitlines():
        if section := _SECTION.fullmatch(line):
            found.append((section[1], []))
            description = []
        elif not found:
            continue  # the text above the first section describes the file
        elif setting := _SETTING.fullmatch(line):
            groups = found[-1][1]
            if description or not groups:
                groups.append((" ".join(description), {}))
            groups[-1][1][setting[1]] = setting[2]
            description = []
        elif comment := line.removeprefix("#").strip():
            description.append(comment)
    return found
