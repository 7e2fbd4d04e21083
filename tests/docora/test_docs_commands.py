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
from tests.docora.test_docs import PAGES, PROJECT, read
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


def test_commands_that_ask_have_the_option_to_skip_the_question(section: str) -> None:
    options = {
        name: commands.load(name).create_parser("", name)._option_string_actions for name in commands.own_commands()
    }
    asking = {name for name, known in options.items() if "--yes" in known}
    assert asking == {"resync", "watch_repository", "unwatch_repository", "delete_app", "rotate_token"}
    sentence = re.search("The others don't ask, not even (.*?)\\.", html.unescape(section))
    assert set(re.findall("<code>([a-z_]+)", sentence[1])) == {"continue_resync", "rotate_key", "prune"}


@pytest.mark.parametrize("address", PAGES)
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
    option = commands.load("list_watches").create_parser("", "")._option_string_actions["--json"]
    assert option.help == f"for scripts: one line per watch: {', '.join(watch)}"


# --- Every command line and setting in every text -----------------------------------------------------------------------

TEXTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    ".env.example",
    "compose.yaml",
    "Dockerfile",
    "docora/deploy/docora",
]
_PROGRAM = re.compile(
    r"(?<!--namespace)(?:^|[\s(/`])(?:manage\.py|docora)[ \t]+(?!/)([a-z_]+)((?:[ \t]+[^\s`<>|;&,)]+)*)", re.MULTILINE
)


def code_of_pages() -> list[str]:
    found = [re.findall(r"<code[^>]*>(.*?)</code>", Client().get(page).text, re.DOTALL) for page in PAGES]
    return [html.unescape(re.sub("<[^>]*>", "", code)) for page in found for code in page]


def code_of_files() -> list[str]:
    """Return the code in Markdown, and the lines of other files."""
    found: list[str] = []
    for name in TEXTS:
        text = (PROJECT / name).read_text()
        if name.endswith(".md"):
            fenced = re.findall(r"(?ms)^ *```.*?\n(.*?)^ *```", text)
            found += fenced + re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
        else:
            found += re.findall(r"`([^`\n]+)`", text)
    return found


def command_lines() -> list[tuple[str, list[str]]]:
    """Return (command, arguments) of everything that looks like a command line of Docora."""
    found = []
    for code in code_of_pages() + code_of_files():
        for name, rest in _PROGRAM.findall(code):
            found.append((name, shlex.split(rest.split(" 2>")[0].split(" #")[0])))
        # The handbook often leaves the program out: `resync APP_ID`.
        words = code.split()
        if len(words) > 1 and "\n" not in code and words[0] in get_commands():
            found.append((words[0], words[1:]))
    return found


def plausible(word: str) -> str:
    """Return a value for a placeholder, such as `[REPOSITORY_ID]`, `N` or `app_…`."""
    word = word.strip("[]")
    return "1" if re.fullmatch(r"[A-Z_]+", word) else word


def test_every_command_line_is_accepted() -> None:
    lines = command_lines()
    assert len({name for name, _ in lines}) > 20
    for name, arguments in lines:
        if name in {"help", "version"}:
            continue
        assert name in get_commands(), name
        words = [plausible(word) for word in arguments if word not in {"…", "..."}]
        parser = commands.load(name).create_parser("manage.py", name)
        if words and words[0].startswith("--"):  # the text only names options of the command
            named = {word.strip("[]") for word in words if word.startswith(("--", "[--"))}
            assert named <= parser._option_string_actions.keys(), (name, words)
        elif words:
            parser.parse_args(words)  # raises CommandError


def test_every_option_in_the_handbook_belongs_to_a_command() -> None:
    known = {
        option
        for name in [*commands.own_commands(), *commands.EXTENDED]
        for option in commands.load(name).create_parser("", name)._option_string_actions
    }
    of_others = {"--help", "--profile", "--scale", "--detach", "--build", "--wait", "--ignore-not-found", "--namespace"}
    named = {
        word
        for code in code_of_pages()
        for word in code.split()
        if re.fullmatch(r"--[a-z][a-z-]+", word) and code == word
    }
    assert named - known - of_others == set()


NOT_SETTINGS = {
    "DOCORA_ENV_FILE", "DOCORA_NETWORK", "POSTGRES_PASSWORD", "DOCORA_BUILD_SHA", "DOCORA_BUILD_NUMBER",
    "DOCORA_BUILD_DATE", "NO_COLOR", "VALKEY_PASSWORD", "POSTGRES_URL",
}  # fmt: skip
"""Variables that docora/conf/installation.py, compose.yaml, the Dockerfile, the terminal and the backup's commands read."""


def test_every_setting_in_the_handbook_exists() -> None:
    documented = dict(re.findall(r"(?m)^# ([A-Z_]+)=(.*)$", (PROJECT / ".env.example").read_text()))
    page = Client().get("/docs/operations/").text
    page = re.sub(r'(?s)<h2 id="moving".*?<h2', "", page)  # it names settings of the existing service
    named = re.findall(r"<code>([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=([^<]*))?</code>", page)
    assert len({name for name, _ in named}) > 50
    assert {name for name, _ in named if name not in documented} - NOT_SETTINGS == set()
    for name, value in re.findall(r"<code>([A-Z_]+)=([^<]*)</code>, the default", page):
        assert documented[name] == value, name
