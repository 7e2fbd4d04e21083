"""Every command explains itself, and every one that an operator needs is offered."""

import argparse

import pytest
from django.core.management import get_commands

from docora.cli import commands

OURS = sorted(set(dict(commands.offered())) - set(commands.LINES))
STREAM_NOTHING = {"up", "web", "demo"}


def test_every_command_of_docora_is_offered_and_no_other_but_the_few() -> None:
    packages = {"docora", "deliveries_app", "repositories_app"}
    known = {name for name, package in get_commands().items() if package in packages}
    assert known <= {*OURS, *commands.LINES}  # some of the few are Django's with something before them
    assert set(commands.LINES) <= set(get_commands())


def test_a_command_that_is_in_no_group_stands_at_the_end(monkeypatch) -> None:
    monkeypatch.setitem(commands.GROUPS, "Run", ("up",))
    groups = commands.groups.__wrapped__()
    assert groups["Run"] == ["up"]
    assert {"sweep", "receiver"} <= set(groups[commands.OTHERS])


@pytest.mark.parametrize("name", OURS)
def test_a_command_says_in_a_sentence_what_it_does_and_explains_each_option(name: str) -> None:
    line = commands.line_of(name)
    assert line.endswith(".")
    assert len(line) < 140
    parser = commands.load(name).create_parser("manage.py", name)
    assert [action.dest for action in parser._actions if not action.help and not action.choices] == []
    assert f"usage: manage.py {name}" in parser.format_help()


@pytest.mark.parametrize("name", sorted(set(OURS) - STREAM_NOTHING))
def test_a_command_answers_scripts_too(name: str) -> None:
    parser = commands.load(name).create_parser("manage.py", name)
    option = parser._option_string_actions["--json"]
    assert isinstance(option, argparse._StoreTrueAction)
    assert str(option.help).startswith("for scripts: ")
