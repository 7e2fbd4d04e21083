"""Completion, asked for by real shells: what stands in the database is offered, and nothing is ever left behind."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from django.db import connection

from deliveries_app.actors import Actor
from deliveries_app.services import delete_app, resync_by_app
from docora.management import completing
from tests.docora.test_up import free_port
from tests.support.commands import manage
from tests.support.staff import make_app, make_pair

# The words are what somebody has typed; the last of them is completed.
BASH = """
source {script}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
{function}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{ }}
_files() {{ print -r files }}
_describe() {{ print -rl -- "${{(@)found%%:*}}" }}
source {script}
words=("$@"); CURRENT=$#
{function}
"""
FISH = "source {script}; complete -C (string join ' ' -- $argv) | cut -f1"


class Shell:
    """One of the shells, with its script as this installation prints it."""

    def __init__(self, name: str, directory: Path, environment: Mapping[str, str]) -> None:
        self.name, self.environment = name, dict(environment)
        self.script = directory / f"completion.{name}"
        made = manage("completion", name, environment=environment)
        assert (made.returncode, made.stderr) == (0, "")
        self.script.write_text(made.stdout)

    def complete(self, *typed: str) -> list[str]:
        function = "_docora_python" if typed[0] == "python" else "_docora"
        code = {"bash": BASH, "zsh": ZSH, "fish": FISH}[self.name].format(script=self.script, function=function)
        call = {
            "bash": ["bash", "--norc", "-c", code, "bash", *typed],
            "zsh": ["zsh", "-f", "-c", code, "zsh", *typed],
            "fish": ["fish", "--no-config", "-c", code, *typed],
        }[self.name]
        done = subprocess.run(
            call, env=self.environment, capture_output=True, text=True, timeout=60, check=True, cwd=self.script.parent
        )
        assert done.stderr == ""
        return sorted(filter(None, done.stdout.splitlines()))


@pytest.fixture(params=completing.SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path, instance_environment: dict[str, str]) -> Shell:
    return Shell(request.param, tmp_path, instance_environment)


@pytest.fixture
def bash(tmp_path: Path, instance_environment: dict[str, str]) -> Shell:
    return Shell("bash", tmp_path, instance_environment)


def test_a_shell_completes_commands_options_and_ids(shell: Shell, transactional_db: None) -> None:
    portal, search = make_app("Portal"), make_app("Search")
    docs, _ = make_pair(portal, "docs"), make_pair(search, "site")
    assert shell.complete("docora", "res") == ["reset_circuit", "resume_syncing", "resync"]
    assert shell.complete("docora", "resync", "app_") == sorted([portal.app_id, search.app_id])
    assert shell.complete("manage.py", "resync", portal.app_id, "") == [docs.repository.repository_id]
    assert shell.complete("docora", "resync", portal.app_id, "--wait", "--ti") == ["--timeout"]
    assert shell.complete("docora", "doctor", "--app", search.app_id[:8]) == [search.app_id]
    assert shell.complete("python", "manage.py", "pause") == ["pause_syncing"]
    assert shell.complete("python", "./manage.py", "delete_app", portal.app_id[:9]) == [portal.app_id]


def test_any_other_use_of_python_is_left_to_the_shell(bash: Shell) -> None:
    assert bash.complete("python", "-m") == []
    assert bash.complete("python", "man") == []
    assert bash.complete("python", "other.py", "res") == []


def test_it_offers_docora_s_commands_and_the_few_others_that_operators_use(bash: Shell) -> None:
    offered = bash.complete("docora", "")
    assert {"up", "resync", "migrate", "createsuperuser", "changepassword", "axes_reset", "shell"} <= set(offered)
    assert not {"makemigrations", "test", "runserver", "collectstatic"} & set(offered)
    assert bash.complete("docora", "help", "onb") == ["onboard_app"]
    assert bash.complete("docora", "makemigrations", "--") == []


def test_options_are_those_of_the_command_that_are_not_given_yet(db) -> None:
    def words(*typed: str) -> list[str]:
        return [word for word, _ in completing.candidates(typed)]

    assert words("prune", "--") == ["--dry-run", "--json"]
    assert words("prune", "--dry-run", "--") == ["--json"]
    assert words("resync", "--timeout", "") == [], "a number is nobody's to guess"
    assert words("completion", "") == ["bash", "zsh", "fish", "words"]
    assert words("prune", "x", "") == words("nonsense", "") == []


def test_what_is_offered_is_alive_and_belongs_together(pairs) -> None:
    portal, search = pairs[0].app, pairs[2].app
    offered = dict(completing.candidates(["unwatch_repository", search.app_id, ""]))
    assert offered == {pairs[2].repository.repository_id: "acme/docs"}
    assert len(completing.candidates(["reset_circuit", ""])) == 2
    operation = resync_by_app(Actor.command(), portal)
    assert dict(completing.candidates(["cancel", "bulk"])) == {operation.operation_id: "Re-sync all · Portal"}
    delete_app(Actor.command(), portal)
    assert dict(completing.candidates(["ping_app", ""])) == {search.app_id: "Search"}


def test_the_haste_of_a_completion_is_gone_with_its_answer(transactional_db: None, pairs) -> None:
    connection.close()
    before = dict(connection.settings_dict["OPTIONS"])
    assert completing.candidates(["ping_app", ""])
    assert connection.settings_dict["OPTIONS"] == before
    if connection.vendor == "postgresql":
        assert connection.connection.info.get_parameters()["connect_timeout"] == "2", "a finger waits on the key"
    connection.close()  # the next one is made with patience


@pytest.mark.parametrize("trouble", ["no server", "no file", "a bad setting"])
def test_trouble_is_silent_and_leaves_nothing_behind(trouble: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"SECRET_KEY", "ENCRYPTION_KEYS"}}
    environment |= {
        "no server": {"DATABASE_URL": f"postgres://127.0.0.1:{free_port()}/x"},
        "no file": {"DATABASE_URL": ""},
        "a bad setting": {"MAX_IN_FLIGHT": "many"},
    }[trouble] | {"DATA_DIR": str(tmp_path / "data")}
    shell = Shell("bash", tmp_path, os.environ)
    shell.environment = environment
    assert shell.complete("docora", "resync", "app_") == []
    assert not (tmp_path / "data").exists()
