"""The OpenAPI document and the API reference page: public, complete and true to the contract."""

import json
import os
import re
import shlex
import subprocess

import pytest
from django.conf import settings
from django.test import Client
from django.utils.html import escape

from deliveries_app.actors import Actor
from deliveries_app.api import schemas
from deliveries_app.docs import api_reference
from deliveries_app.models import AppRepository, FailureKind, Outcome, Reason, Status
from deliveries_app.models.deliveries import DeliveryState, Kind
from deliveries_app.models.root_causes import ErrorCause
from deliveries_app.services import watch_settings
from docora.templatetags.docora import prose
from tests.api.caller import Caller

CALLS = {
    ("POST", "/api/repositories"): {201, 202, 401, 404, 409, 413, 422, 429, 500, 503},
    ("GET", "/api/repositories"): {200, 401, 422, 429, 500, 503},
    ("GET", "/api/repositories/{repository_id}"): {200, 401, 404, 429, 500, 503},
    ("DELETE", "/api/repositories/{repository_id}"): {204, 401, 404, 429, 500, 503},
    ("PATCH", "/api/repositories/{repository_id}/token"): {200, 401, 404, 413, 422, 429, 500, 503},
    ("POST", "/api/repositories/{repository_id}/resync"): {202, 401, 404, 429, 500, 503},
    ("PUT", "/api/repositories"): {200, 201, 401, 404, 409, 413, 422, 429, 500, 503},
    ("POST", "/api/repositories/{repository_id}/push-secret"): {201, 401, 404, 429, 500, 503},
    ("GET", "/api/repositories/{repository_id}/failures"): {200, 401, 404, 422, 429, 500, 503},
    ("GET", "/api/repositories/{repository_id}/deliveries"): {200, 401, 404, 422, 429, 500, 503},
    ("POST", "/api/repositories/{repository_id}/resend"): {202, 401, 404, 413, 422, 429, 500, 503},
    ("GET", "/api/repositories/{repository_id}/manifest"): {200, 401, 404, 422, 429, 500, 503},
    ("GET", "/api/repositories/{repository_id}/runs"): {200, 401, 404, 422, 429, 500, 503},
    ("GET", "/api/repositories/{repository_id}/runs/{run_id}"): {200, 401, 404, 429, 500, 503},
    ("GET", "/api/app"): {200, 401, 429, 500, 503},
    ("PATCH", "/api/app"): {200, 401, 409, 413, 422, 429, 500, 503},
    ("POST", "/api/app/ping"): {200, 401, 409, 413, 422, 429, 500, 503},
    ("POST", "/api/app/key"): {201, 401, 409, 413, 422, 429, 500, 503},
    ("POST", "/api/app/key/retire"): {204, 401, 409, 429, 500, 503},
    ("DELETE", "/api/app/key"): {204, 401, 409, 429, 500, 503},
    ("POST", "/api/hooks/push/{repository_id}"): {202, 401, 413, 429, 500, 503},
    ("GET", "/health"): {200, 405, 500},
    ("GET", "/health/ready"): {200, 405, 500, 503},
    ("GET", "/health/web"): {200, 405, 500, 503},
    ("GET", "/version"): {200, 405, 500},
}


@pytest.fixture
def document(client: Client) -> dict:
    return client.get("/openapi.json").json()


@pytest.fixture
def page(client: Client) -> str:
    answer = client.get("/docs/api/")
    assert answer.status_code == 200
    return answer.content.decode()


def test_document_is_served_at_two_urls(client: Client, document: dict) -> None:
    assert document["openapi"] == "3.1.0"
    assert client.get("/api/openapi.json").json() == document


def test_document_has_every_call_and_status(document: dict) -> None:
    found = {
        (method.upper(), path): {int(status) for status in operation["responses"]}
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert found == CALLS


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("post", "/api/app/ping", "another ping"),
        ("get", "/api/repositories/{repository_id}/manifest", "two other manifests"),
        ("post", "/api/repositories", "waiting for a git host"),
        ("put", "/api/repositories", "waiting for a git host"),
        ("patch", "/api/repositories/{repository_id}/token", "waiting for a git host"),
    ],
)
def test_calls_that_are_limited_say_so(document: dict, method: str, path: str, what: str) -> None:
    assert what in document["paths"][path][method]["responses"]["429"]["description"]


def test_errors_share_one_schema(document: dict) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and (path, status) not in {("/health/web", "503"), ("/health/ready", "503")}:
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}, (path, status)


def test_fields_have_descriptions(document: dict) -> None:
    self_explanatory = {
        "owner",
        "name",
        "error",
        "message",
        "page",
        "ready",
        "timestamp",
        "version",
        "buildNumber",
        "gitSha",
    }
    self_explanatory |= {"buildDate", "repositories", "failures", "runs", "deliveries"}
    for name, schema in document["components"]["schemas"].items():
        for field, details in schema.get("properties", {}).items():
            assert {"description", "$ref"} & set(details) or field in self_explanatory, (name, field)


def test_calls_that_need_a_token(document: dict) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert bool(operation["security"]) == path.startswith(("/api/repositories", "/api/app")), path
    assert document["components"]["securitySchemes"]["AppToken"]["scheme"] == "bearer"


def test_page_shows_every_call_with_an_example(page: str) -> None:
    groups = api_reference.context()["groups"]
    calls = [call for group in groups.values() for call in group]
    assert {(call.method, call.path) for call in calls} == set(CALLS)
    for call in calls:
        assert f'id="{call.anchor}"' in page
        assert escape(call.curl) in page
        command = call.curl[call.curl.index("curl ") :]
        assert call.curl == command or command.endswith('-d "$BODY"')
        assert "{" not in command.partition(" -d ")[0], "every placeholder has an example"
        assert ("$DOCORA_TOKEN" in call.curl) == call.path.startswith(("/api/repositories", "/api/app"))


def test_examples_of_calls_that_read_work(portal: Caller, watches: list[AppRepository]) -> None:
    run_id = portal.post(f"/{watches[0].repository.repository_id}/resync").json()["run_id"]
    groups = api_reference.context()["groups"]
    reads = [
        call for calls in groups.values() for call in calls if call.method == "GET" and call.path.startswith("/api")
    ]
    assert len(reads) > 6
    for call in reads:
        url = shlex.split(call.curl)[1].removeprefix(settings.PUBLIC_URL)
        url = url.replace(schemas.REPOSITORY_ID, watches[0].repository.repository_id).replace(schemas.RUN_ID, run_id)
        answer = portal.client.get(url)
        assert answer.status_code == 200, (url, answer.content)


def test_filters_and_fields_name_all_their_values() -> None:
    """Descriptions that explain only some values, or another field, don't replace the list of values."""
    calls = {call.anchor: call for group in api_reference.context()["groups"].values() for call in group}
    filters = {(anchor, field.name): field for anchor, call in calls.items() for field in call.parameters}
    fields = {(anchor, field.name): field for anchor, call in calls.items() for field in call.fields}
    for key, values in {
        ("list_failures", "kind"): FailureKind.values,
        ("list_deliveries", "state"): DeliveryState,
        ("list_runs", "outcome"): Outcome.values,
    }.items():
        assert filters[key].type == "string, query"
        assert [value for value in values if f"`{value}`" not in filters[key].description] == []
    for key, values in {
        ("get_repository", "status"): Status.values,
        ("get_repository", "last_error_cause"): ErrorCause,
        ("get_run", "reason"): Reason.values,
        ("get_run", "outcome"): Outcome.values,
        ("list_deliveries", "deliveries[].event"): Kind,
        ("list_deliveries", "deliveries[].state"): DeliveryState,
        ("list_failures", "failures[].kind"): FailureKind.values,
    }.items():
        assert [value for value in values if f"`{value}`" not in fields[key].description] == []


def test_page_says_what_a_field_that_is_left_out_means(page: str) -> None:
    assert page.count("Fields that are left out keep their values.") == 1
    assert page.count("Fields that are left out or null keep their values.") == 1


def test_message_examples() -> None:
    group = {call.anchor: call for calls in api_reference.context()["groups"].values() for call in calls}
    for anchor, message in {"replace_token": "Token updated successfully", "push_hook": "Check queued"}.items():
        assert json.loads(group[anchor].example) == {"message": message}


@pytest.mark.parametrize("secret", ["right", "wrong"])
def test_push_hook_command_signs_its_body(live_server, watches: list[AppRepository], secret: str) -> None:
    push_secret = watch_settings.renew_push_secret(Actor.command(), watches[0])
    calls = [call for group in api_reference.context()["groups"].values() for call in group]
    (hook,) = (call for call in calls if call.needs_signature)
    example = re.search(r"repo_[0-9a-f]{24}", hook.curl)
    assert example
    command = hook.curl.replace(settings.PUBLIC_URL, live_server.url)
    command = command.replace(example[0], watches[0].repository.repository_id).replace("curl ", "curl --silent ", 1)
    environment = os.environ | {"PUSH_SECRET": push_secret if secret == "right" else "not the secret", "NO_PROXY": "*"}
    answer = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, timeout=30, check=True)
    assert ("message" in json.loads(answer.stdout)) == (secret == "right"), answer.stdout


def test_description_is_escaped() -> None:
    assert prose("a `<b>` & `c` <i>") == "a <code>&lt;b&gt;</code> &amp; <code>c</code> &lt;i&gt;"
