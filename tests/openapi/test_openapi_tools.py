"""The OpenAPI document, checked with Node.js tools: two linters and a generated TypeScript client.

`make openapi` installs the tools and runs this. The suite leaves it out, because it needs the npm registry.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deliveries_app.api import openapi
from deliveries_app.models import AppRepository
from tests.api.caller import token_of
from tests.support.world import World

HERE = Path(__file__).parent
TOOLS = os.environ.get("OPENAPI_TOOLS", "")
pytestmark = pytest.mark.skipif(not TOOLS, reason="`make openapi` runs this")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the document and the tools."""
    (tmp_path / "openapi.json").write_text(json.dumps(openapi.document()))
    (tmp_path / "node_modules").symlink_to(Path(TOOLS).resolve() / "node_modules")
    shutil.copy(HERE / "package.json", tmp_path)
    return tmp_path


def run(folder: Path, tool: str, *arguments: str) -> str:
    """Run a tool and return its output. If the tool fails, so does the test, showing that output."""
    program = folder / "node_modules" / ".bin" / tool
    environment = os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    done = subprocess.run(
        [program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_redocly_accepts_the_document(folder: Path) -> None:
    """With its recommended rules, except the one that requires a licence, which Docora does not have yet."""
    rules = {"extends": ["recommended"], "rules": {"info-license": "off"}}
    (folder / "redocly.yaml").write_text(json.dumps(rules))
    assert "You have" not in run(folder, "redocly", "lint", "openapi.json")  # a number of warnings


def test_spectral_accepts_the_document(folder: Path) -> None:
    (folder / ".spectral.yaml").write_text('extends: ["spectral:oas"]\n')
    run(folder, "spectral", "lint", "openapi.json", "--fail-severity", "hint")


def test_typescript_client(world: World, live_server, folder: Path) -> None:
    run(folder, "openapi-typescript", "openapi.json", "-o", "api.d.ts")
    shutil.copy(HERE / "client.ts", folder)
    options = ["--strict", "--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler"]
    run(folder, "tsc", *options, "--lib", "es2022,dom", "client.ts")
    repo = world.git.repo("acme/docs", {"a.md": b"1", "b.md": b"2"})
    command = ["node", "client.js", live_server.url, token_of(world.app), repo.url]
    for status, paths in (("pending_snapshot", []), ("synced", ["a.md"])):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
        found = json.loads(done.stdout)
        assert found == {
            "repository_id": AppRepository.objects.get().repository.repository_id,
            "status": status,
            "code": "not_watched",
            "patterns": ["*.png"],
            "paths": paths,
            "content": "text",
        }
        world.settle()
