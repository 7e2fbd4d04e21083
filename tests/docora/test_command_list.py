"""Every command explains itself and its options."""

import argparse

import pytest

from docora.cli import commands

OURS = commands.own_commands()
WITHOUT_JSON = {"up", "web", "demo"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = commands.load(name)
    assert command.help.endswith(".")
    parser = command.create_parser("manage.py", name)
    assert [action.dest for action in parser._actions if not action.help and not action.choices] == []
    assert f"usage: manage.py {name}" in parser.format_help()


@pytest.mark.parametrize("name", sorted(set(OURS) - WITHOUT_JSON))
def test_commands_with_json_output(name: str) -> None:
    parser = commands.load(name).create_parser("manage.py", name)
    option = parser._option_string_actions["--json"]
    assert isinstance(option, argparse._StoreTrueAction)
    assert str(option.help).startswith("for scripts: ")
