"""Run Docora's commands in this process, or in a child process as a shell would."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from django.core.management import call_command

from tests.support.nursery import PROJECT, Child, nursery

__all__ = ["PROJECT", "manage", "run", "run_each", "run_json", "run_script"]


def run(name: str, *arguments: str, **options: Any) -> str:
    """Run the command and return its stdout."""
    out = io.StringIO()
    call_command(name, *arguments, stdout=out, **options)
    return out.getvalue()


def run_json(name: str, *arguments: str) -> Any:
    """Run the command with `--json` and return the one object that it printed."""
    return json.loads(run(name, *arguments, "--json"))


def manage(
    *arguments: str, environment: Mapping[str, str] = os.environ, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return run_script(PROJECT / "manage.py", *arguments, environment=environment, timeout=timeout)


def run_each(
    lines: Sequence[Sequence[str]], environment: Mapping[str, str], variables: Sequence[Mapping[str, str]] = ()
) -> list[tuple[int, str, str]]:
    """Run the command lines in one process, each with its own additional variables. Return exit codes, stdout and stderr."""
    each = list(zip(lines, variables or [{}] * len(lines), strict=True))
    script = PROJECT / "tests" / "support" / "every_command.py"
    done = run_script(script, environment=environment, stdin=json.dumps(each), timeout=120)
    done.check_returncode()
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def run_script(
    script: Path,
    *arguments: str,
    environment: Mapping[str, str] = os.environ,
    stdin: str = "",
    timeout: float = 60,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a Python script of the project in a process of its own, in the current folder or another one."""
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(stdin.encode())
        given.seek(0)
        files = {"stdin": given, "stdout": out, "stderr": err}
        process: subprocess.Popen[bytes] | Child
        if nursery.can_start(environment):
            process = nursery.start(arguments, environment, script=script, folder=folder, **files)
        else:
            variables = {**environment, "PYTHONPATH": str(PROJECT)}
            process = subprocess.Popen([sys.executable, str(script), *arguments], env=variables, cwd=folder, **files)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(process.args, status, out.read().decode(), err.read().decode())
