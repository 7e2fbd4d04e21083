"""`.env.example` as what the documentation shows. That file is the list of all settings and their defaults; the house
rules hold it against `settings.py`."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

_SECTION = re.compile(r"# --- (.+?) -+")
_SETTING = re.compile(r"# ([A-Z][A-Z_]+)=(.*)")


@dataclass
class Group:
    """Settings that one comment explains: name → default, empty where there is none."""

    words: str
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Section:
    """A part of the file."""

    title: str
    groups: list[Group] = field(default_factory=list)


def sections() -> list[Section]:
    """Empty where the file was not deployed."""
    path = Path(settings.BASE_DIR) / ".env.example"
    return parse(path.read_text(encoding="utf-8")) if path.exists() else []


def parse(text: str) -> list[Section]:
    """The lines above a setting explain it, and those that follow it without a line between."""
    found: list[Section] = []
    words: list[str] = []
    for line in text.splitlines():
        if section := _SECTION.fullmatch(line):
            found.append(Section(section[1]))
            words = []
        elif not found:
            continue  # what stands above the first section is about the file
        elif setting := _SETTING.fullmatch(line):
            if words or not found[-1].groups:
                found[-1].groups.append(Group(" ".join(words)))
            found[-1].groups[-1].settings[setting[1]] = setting[2]
            words = []
        elif comment := line.removeprefix("#").strip():
            words.append(comment)
    return found
