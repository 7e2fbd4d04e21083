"""Parse `.env.example` for the documentation.

That file lists all settings with their defaults. A test compares it with `settings.py`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

_SECTION = re.compile(r"# --- (.+?) -+")
_SETTING = re.compile(r"# ([A-Z][A-Z_]+)=(.*)")


@dataclass
class Group:
    """Settings that share one comment: name → default, which may be empty."""

    description: str
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Section:
    """A titled section of the file."""

    title: str
    groups: list[Group] = field(default_factory=list)


def sections() -> list[Section]:
    """Return the sections of `.env.example`. Empty if the file was not deployed."""
    path = Path(settings.BASE_DIR) / ".env.example"
    return parse(path.read_text(encoding="utf-8")) if path.exists() else []


def parse(text: str) -> list[Section]:
    """Parse the file. A comment describes the settings below it, up to the next comment."""
    found: list[Section] = []
    description: list[str] = []
    for line in text.splitlines():
        if section := _SECTION.fullmatch(line):
            found.append(Section(section[1]))
            description = []
        elif not found:
            continue  # the text above the first section describes the file
        elif setting := _SETTING.fullmatch(line):
            if description or not found[-1].groups:
                found[-1].groups.append(Group(" ".join(description)))
            found[-1].groups[-1].settings[setting[1]] = setting[2]
            description = []
        elif comment := line.removeprefix("#").strip():
            description.append(comment)
    return found
