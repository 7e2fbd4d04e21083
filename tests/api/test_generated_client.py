"""A Python client generated from the OpenAPI document works against a real server."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deliveries_app.api import openapi
from deliveries_app.api.schemas import Registered
from tests.api.caller import token_of
from tests.support.world import World


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> ModuleType:
    """Generate the client and return its package."""
    folder: Path = tmp_path_factory.mktemp("client")
    document = folder / "openapi.json"
    document.write_text(json.dumps(openapi.document()))
    programs = Path(sys.executable).parent  # the generator calls ruff
    generate = [programs / "openapi-python-client", "generate", "--meta", "none"]
    done = subprocess.run(
        [*generate, "--path", document, "--output-path", folder / "docora_client"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("docora_client")
    finally:
        sys.path.remove(str(folder))


def test_generated_client_watches_and_reads_a_repository(world: World, live_server, package: ModuleType) -> None:
    def call(group: str, operation: str, **arguments: object):
        module = importlib.import_module(f"docora_client.api.{group}.{operation}")
        return module.sync(client=client, **arguments)

    models = importlib.import_module("docora_client.models")
    client = package.AuthenticatedClient(base_url=live_server.url, token=token_of(world.app))
    repo = world.git.repo("acme/docs", {"a.md": b"1", "b.md": b"2"})
    watched = call("repositories", "ensure_repository", body=models.WantedRepository(github_url=repo.url))
    assert set(Registered.model_fields) <= set(watched.to_dict())
    world.settle()
    repository_id = watched.repository_id
    one = call("repositories", "get_repository", repository_id=repository_id)
    assert (one.status.value, one.files, one.last_error_cause) == ("synced", 2, None)
    page = call("files", "list_deliveries", repository_id=repository_id, limit=1)
    assert [row.path for row in page.deliveries] == ["a.md"]
    page = call("files", "list_deliveries", repository_id=repository_id, limit=1, after=page.next_)
    assert ([row.path for row in page.deliveries], page.next_) == (["b.md"], None)
    resent = call("files", "resend_files", repository_id=repository_id, body=models.Paths(paths=["a.md"]))
    run = call("runs", "get_run", repository_id=repository_id, run_id=resent.run_id)
    assert (run.reason.value, run.outcome) == ("retry", None)
    endpoint = call("app", "change_app", body=models.EndpointSettings(max_in_flight=2))
    assert (endpoint.max_in_flight, endpoint.max_in_flight_limit) == (2, 8)
    missing = call("repositories", "get_repository", repository_id="repo_" + "0" * 24)
    assert (missing.code.value, missing.retryable) == ("not_watched", False)


def test_every_call_is_generated(package: ModuleType) -> None:
    found = {path.stem for path in Path(str(package.__file__)).parent.glob("api/*/*.py")} - {"__init__"}
    wanted = {
        operation["operationId"]
        for operations in openapi.document()["paths"].values()
        for operation in operations.values()
    }
    assert wanted <= found
