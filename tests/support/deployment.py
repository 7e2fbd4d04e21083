"""Read the Dockerfile, compose.yaml and the systemd units as their tools do."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
UNITS = PROJECT / "docora" / "deploy"

ENV_FILE = {
    "PUBLIC_URL": "https://docora.example",
    "SECRET_KEY": "a-secret-key-that-only-the-tests-of-a-deployment-use",
    "ENCRYPTION_KEYS": "an-encryption-key-that-only-tests-use",
    "POSTGRES_PASSWORD": "a-password-that-only-tests-use",
    "VALKEY_PASSWORD": "aPasswordThatOnlyTestsUse1",
}
"""The `.env` of an installation with only the required settings."""


# --- Dockerfile ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """Return the arguments, which are either a JSON list or separated by spaces."""
        return json.loads(self.value) if self.value.startswith("[") else self.value.split()


def dockerfile() -> list[list[Instruction]]:
    """Return the instructions of each stage, starting with its FROM. Build arguments in FROM have their defaults."""
    stages: list[list[Instruction]] = []
    arguments: dict[str, str] = {}
    lines = [line for line in (PROJECT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    for statement in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if statement.strip():
            name, _, value = statement.partition(" ")
            assert name.isupper(), f"not an instruction: {statement}"
            if name == "ARG" and not stages:
                argument, _, default = value.strip().partition("=")
                arguments[argument] = default
                continue
            if name == "FROM":
                stages.append([])
                value = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], value)
            stages[-1].append(Instruction(name, value.strip()))
    return stages


def copied(stage: list[Instruction]) -> Iterator[tuple[str, str]]:
    """Yield source and target of everything that a stage copies from the checkout."""
    for instruction in stage:
        if instruction.name == "COPY" and not instruction.value.startswith("--from="):
            *sources, target = [word for word in instruction.words if not word.startswith("--")]
            yield from ((source, target) for source in sources)


def unpack_image(folder: Path) -> None:
    """Create `folder` with the contents of the image's working directory, compiled as in the image."""
    folder.mkdir()
    for source, target in copied(dockerfile()[-1]):
        path = PROJECT / source
        if path.is_dir():
            shutil.copytree(path, folder / target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(path, folder / target)
    [arguments] = [one.words[2:] for one in dockerfile()[-1] if one.value.startswith("python -m compileall")]
    subprocess.run([sys.executable, "-m", *arguments], cwd=folder, check=True)


def image_variables() -> dict[str, str]:
    """Return the environment that the image sets, with empty build arguments."""
    [value] = [instruction.value for instruction in dockerfile()[-1] if instruction.name == "ENV"]
    variables = dict(word.split("=", 1) for word in shlex.split(value))
    return {name: "" if value.startswith("$") else value for name, value in variables.items()}


# --- compose.yaml -------------------------------------------------------------------------------------------------------


_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}")


class MissingVariable(Exception):
    """A required variable is not set. The message is the one that Compose prints."""


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """Return compose.yaml with anchors, merges and variables resolved."""
    return _interpolated(yaml.safe_load((PROJECT / "compose.yaml").read_text()), variables)


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    def fill(match: re.Match[str]) -> str:
        name, how, rest = match.groups()
        if not variables.get(name) and how == ":?":
            raise MissingVariable(f"{name} {rest}")
        return variables.get(name) or (rest if how == ":-" else "")

    if isinstance(value, dict):
        return {key: _interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_interpolated(inner, variables) for inner in value]
    return _VARIABLE.sub(fill, value) if isinstance(value, str) else value


# --- systemd ------------------------------------------------------------------------------------------------------------


def unit(name: str) -> dict[str, list[str]]:
    """Return the values of each key of a unit, across all sections."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def start_command(name: str) -> list[str]:
    """Return the arguments of `manage.py` in a unit's ExecStart."""
    [line] = unit(name)["ExecStart"]
    python, manage, *arguments = line.split()
    assert (python, manage) == ("/opt/docora/.venv/bin/python", "manage.py")
    return arguments
