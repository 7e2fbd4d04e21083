"""The commands that an operator types, in groups: what `help` shows first."""

import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management import ManagementUtility, get_commands, load_command_class
from django.core.management.base import BaseCommand

from docora.cli.output import USAGE

GROUPS: dict[str, tuple[str, ...]] = {
    "Run": ("up", "web", "rqworker", "sweep", "demo", "receiver"),
    "Apps and what they watch": (
        "onboard_app", "list_apps", "ping_app", "rotate_token", "rotate_key", "delete_app",
        "watch_repository", "list_watches", "replace_github_token", "unwatch_repository",
    ),
    "Syncing": (
        "status", "explain", "resync", "retry", "cancel", "pause_syncing", "resume_syncing", "reset_circuit",
    ),
    "Looking after it": (
        "doctor", "send_test_alert", "prune", "rotate_encryption_keys", "import_docora", "generate_data",
    ),
    "Database and accounts": ("migrate", "createsuperuser", "changepassword", "axes_reset", "shell", "dbshell"),
}  # fmt: skip
OTHERS = "More"
"""What Docora has beside these."""

LINES = {
    "rqworker": "A worker that syncs: rqworker high default low.",
    "migrate": "Brings the tables of the database to this version.",
    "createsuperuser": "Makes an administrator.",
    "changepassword": "Gives a user another password.",
    "axes_reset": "Unlocks everybody who is locked out after failed sign-ins.",
    "shell": "Python with Docora's models.",
    "dbshell": "The database's own command line.",
}
"""Of commands that are not Docora's."""

_PACKAGES = {"docora", "repositories_app", "deliveries_app"}
_SENTENCE = re.compile(r"(.+?\.)(\s|$)")


@cache
def groups() -> dict[str, list[str]]:
    """Group → the commands of it that there are."""
    known = get_commands()
    found = {title: [name for name in names if name in known] for title, names in GROUPS.items()}
    grouped = {name for names in GROUPS.values() for name in names}
    found[OTHERS] = sorted(name for name, package in known.items() if package in _PACKAGES and name not in grouped)
    return {title: names for title, names in found.items() if names}


def offered() -> Iterator[tuple[str, str]]:
    """Every command of the groups, with a line about it."""
    for names in groups().values():
        for name in names:
            yield name, line_of(name)


def load(name: str) -> BaseCommand:
    found: Any = get_commands()[name]
    return found if isinstance(found, BaseCommand) else load_command_class(found, name)


def line_of(name: str) -> str:
    """The first sentence of the command's own help."""
    told = LINES.get(name) or load(name).help
    sentence = _SENTENCE.match(" ".join(told.split()))
    return sentence[1] if sentence else told


@dataclass(frozen=True)
class Described:
    """A command as the handbook has it: `synopsis` with its arguments, `words` about it, options that explain themselves."""

    synopsis: str
    words: str
    options: list[tuple[str, str]]


@cache
def reference() -> dict[str, list[Described]]:
    """Group → its commands. What is not Docora's own has no options here."""
    return {title: [_described(name) for name in names] for title, names in groups().items()}


def own_options(parser: ArgumentParser) -> Iterator[Action]:
    """Those of the command itself; not the ones that every command has from Django."""
    common = set(BaseCommand().create_parser("", "")._option_string_actions)
    for action in parser._actions:
        if action.option_strings and not common & set(action.option_strings):
            yield action


def _described(name: str) -> Described:
    if name in LINES:
        return Described(name, LINES[name], [])
    command = load(name)
    parser = command.create_parser("", name)
    positional = [action for action in parser._actions if not action.option_strings and action.help != SUPPRESS]
    arguments = [_argument(action) for action in positional]
    options = [(" ".join([one.option_strings[0], *_value(one)]), one.help or "") for one in own_options(parser)]
    return Described(" ".join([name, *arguments]), command.help, options)


def _argument(action: Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return name if action.nargs is None else f"[{name}]"


def _value(action: Action) -> list[str]:
    return [] if action.nargs == 0 else [str(action.metavar or action.dest.upper())]


class CommandLine(ManagementUtility):
    """Django's, with a help that begins with Docora's commands."""

    def main_help_text(self, commands_only: bool = False) -> str:
        if commands_only or "--all" in self.argv:
            return super().main_help_text(commands_only)
        if self.settings_exception is not None:
            raise ImproperlyConfigured(str(self.settings_exception))
        width = max(len(name) for names in groups().values() for name in names)
        lines = [f"Docora. Type '{self.prog_name} COMMAND --help' for the options of a command."]
        for title, names in groups().items():
            lines += ["", title, *(f"  {name:<{width}}  {line_of(name)}" for name in names)]
        return "\n".join([*lines, "", f"'{self.prog_name} help --all' lists Django's other commands too."])

    def fetch_command(self, subcommand: str) -> BaseCommand:
        try:
            return super().fetch_command(subcommand)
        except SystemExit:  # there is none: said already
            raise SystemExit(USAGE) from None
