"""The handbook's page of commands: every command with every option, and examples that are true."""

import html
import json
import re
import shlex
import subprocess

import pytest
from django.core.management import get_commands
from django.test import Client

from deliveries_app.models import OperationKind
from deliveries_app.progress.live import Progress
from deliveries_app.reports.status import watch_facts
from docora.cli import commands
from tests.docora.test_docs import read
from tests.support.staff import make_app, make_watch


@pytest.fixture(scope="module")
def section() -> str:
    return Client().get("/docs/operations/").text.partition('id="commands"')[2].partition("<h2")[0]


def described(section: str) -> dict[str, str]:
    """Command → what is said of it, as text."""
    found = re.findall(r"<dt><code>(\w+)([^<]*)</code></dt>\s*<dd>(.*?)</dd>", section, re.DOTALL)
    return {name: html.unescape(f"{arguments} {re.sub('<[^>]*>', ' ', words)}") for name, arguments, words in found}


def test_every_command_is_described(section: str) -> None:
    names = {name for name, package in get_commands().items() if package in {"docora", "deliveries_app"}}
    assert {"up", "resync", "migrate", "rqworker"} <= names
    assert names <= set(described(section))
    assert set(described(section)) <= set(get_commands())


def test_every_argument_and_option_of_a_command_is_told_and_no_other(section: str) -> None:
    for name, words in described(section).items():
        if name not in commands.own_commands():
            continue
        parser = commands.load(name).create_parser("manage.py", name)
        wanted = {action.option_strings[0] for action in commands.own_options(parser)}
        assert wanted <= set(re.findall(r"--[a-z-]+", words)), name
        assert set(re.findall(r" (--[a-z-]+)", words)) <= wanted, name
        for action in parser._positionals._group_actions:
            assert str(action.metavar or action.dest.upper()) in words, name


@pytest.mark.parametrize("address", ["/docs/", "/docs/operations/", "/docs/webhooks/", "/docs/api/"])
def test_every_command_that_is_to_be_typed_exists_with_its_options(address: str) -> None:
    code = "\n".join(map(html.unescape, re.findall(r"<code[^>]*>([^<]*)</code>", Client().get(address).text)))
    for name, rest in re.findall(
        r"(?:manage\.py|bin/docora|^docora|\(docora) ([a-z_]+)([^\n|>)]*)", code, re.MULTILINE
    ):
        if name != "help":
            parser = commands.load(name).create_parser("manage.py", name)
            assert set(re.findall(r" (--[a-z-]+)", rest)) <= set(parser._option_string_actions), (name, rest)


def test_the_examples_are_understood_by_the_commands() -> None:
    lines = read("/docs/operations/").code["command-examples"].splitlines()
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(re.split(r"[|>]|2>", line.partition("docora ")[2])[0])
        commands.load(words[0]).create_parser("manage.py", words[0]).parse_args(words[1:])
        assert subprocess.run(["bash", "-n", "-c", re.sub(r"^[\d *]+", "", line)], check=False).returncode == 0


def test_the_objects_that_are_shown_have_the_keys_that_are_printed(db) -> None:
    shown = read("/docs/operations/").code
    resync = json.loads(shown["resync-json"])
    progress = Progress(0, 0, 0, 0, 0, None, None)
    assert set(resync) == {"kind", "operation_id", *progress.as_dict()}
    assert resync["kind"] in OperationKind.values
    watch = json.loads(shown["watch-json"])
    assert list(watch) == list(watch_facts(make_watch(make_app("Portal"), "docs")))
