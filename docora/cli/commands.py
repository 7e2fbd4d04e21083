"""Describe Docora's own commands for the handbook, from each command's help."""

from argparse import Action, ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from django.core.management import get_commands, load_command_class
from django.core.management.base import BaseCommand

_PACKAGES = {"docora", "repositories_app", "deliveries_app"}
EXTENDED = {"migrate", "rqworker"}
"""Commands of Django and django-rq that Docora only extends. The handbook describes them in its text."""


@dataclass(frozen=True)
class CommandReference:
    """One command. `synopsis` is its name with its arguments; `options` lists (option, help)."""

    synopsis: str
    description: str
    options: list[tuple[str, str]]


def own_commands() -> list[str]:
    """Return the names of the commands that Docora adds, in alphabetical order."""
    return sorted(name for name, package in get_commands().items() if package in _PACKAGES and name not in EXTENDED)


def load(name: str) -> BaseCommand:
    return load_command_class(get_commands()[name], name)


@cache
def reference() -> list[CommandReference]:
    return [_describe(name) for name in own_commands()]


def own_options(parser: ArgumentParser) -> Iterator[Action]:
    """Yield the options of the command itself, without those that Django gives to every command."""
    common = set(BaseCommand().create_parser("", "")._option_string_actions)
    for action in parser._actions:
        if action.option_strings and not common & set(action.option_strings):
            yield action


def _describe(name: str) -> CommandReference:
    command = load(name)
    parser = command.create_parser("", name)
    synopsis = name
    for action in parser._actions:
        if not action.option_strings:
            synopsis += f" {_value(action)}" if action.nargs is None else f" [{_value(action)}]"
    options = [
        (action.option_strings[0] + ("" if action.nargs == 0 else f" {_value(action)}"), action.help or "")
        for action in own_options(parser)
    ]
    return CommandReference(synopsis, command.help, options)


def _value(action: Action) -> str:
    return str(action.metavar or action.dest.upper())
