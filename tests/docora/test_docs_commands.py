"""The command reference in the handbook: all commands, options and examples."""

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
from deliveries_app.reports.status import watch_fields
from docora.cli import commands
from tests.docora.test_docs import read
from tests.support.staff import make_app, make_watch


@pytest.fixture(scope="module")
def section() -> str:
    return Client().get("/docs/operations/").text.partition('id="commands"')[2].partition("<h2")[0]


def described(section: str) -> dict[str, str]:
    """Return command → its description as text."""
    entries = re.findall(r"<dt><code>(\w+)([^<]*)</code></dt>\s*<dd>(.*?)</dd>", section, re.DOTALL)
    return {name: html.unescape(f"{arguments} {re.sub('<[^>]*>', ' ', text)}") for name, arguments, text in entries}


def test_commands_are_listed(section: str) -> None:
    names = {name for name, package in get_commands().items() if package in {"docora", "deliveries_app"}}
    assert {"up", "resync", "migrate", "rqworker"} <= names
    assert names <= set(described(section))
    assert set(described(section)) <= set(get_commands())


def test_arguments_and_options_are_listed(section: str) -> None:
    for name, text in described(section).items():
        if name not in commands.own_commands():
            continue
        parser = commands.load(name).create_parser("manage.py", name)
        options = {action.option_strings[0] for action in commands.own_options(parser)}
        assert options <= set(re.findall(r"--[a-z-]+", text)), name
        assert set(re.findall(r" (--[a-z-]+)", text)) <= options, name
        for action in parser._positionals._group_actions:
            assert str(action.metavar or action.dest.upper()) in text, name


@pytest.mark.parametrize("address", ["/docs/", "/docs/operations/", "/docs/webhooks/", "/docs/api/", "/docs/changes/"])
def test_commands_in_code_samples_exist(address: str) -> None:
    code = "\n".join(map(html.unescape, re.findall(r"<code[^>]*>([^<]*)</code>", Client().get(address).text)))
    for name, options in re.findall(
        r"(?:manage\.py|bin/docora|^docora|\(docora) ([a-z_]+)([^\n|>)]*)", code, re.MULTILINE
    ):
        if name != "help":
            parser = commands.load(name).create_parser("manage.py", name)
            assert set(re.findall(r" (--[a-z-]+)", options)) <= set(parser._option_string_actions), (name, options)


def test_command_examples_parse() -> None:
    lines = read("/docs/operations/").code["command-examples"].splitlines()
    assert len(lines) == 3
    for line in lines:
        arguments = shlex.split(re.split(r"[|>]|2>", line.partition("docora ")[2])[0])
        commands.load(arguments[0]).create_parser("manage.py", arguments[0]).parse_args(arguments[1:])
        assert subprocess.run(["bash", "-n", "-c", re.sub(r"^[\d *]+", "", line)], check=False).returncode == 0


def test_json_examples_have_the_printed_keys(db) -> None:
    shown = read("/docs/operations/").code
    resync = json.loads(shown["resync-json"])
    progress = Progress(0, 0, 0, 0, 0, None, None)
    assert set(resync) == {"kind", "operation_id", *progress.as_dict()}
    assert resync["kind"] in OperationKind.values
    watch = json.loads(shown["watch-json"])
    assert list(watch) == list(watch_fields(make_watch(make_app("Portal"), "docs")))
