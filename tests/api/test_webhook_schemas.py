"""The schemas of the OpenAPI document describe exactly what is sent."""

import json
import re

import jsonschema_rs
import pytest

from deliveries_app.actors import Actor
from deliveries_app.api import openapi, webhook_schemas
from deliveries_app.docs import examples
from deliveries_app.models import App, Reason
from deliveries_app.services.pinging import send_ping
from deliveries_app.webhooks.payloads import Envelope
from repositories_app.git.exceptions import Cause
from tests.support.receiver import Answer
from tests.support.world import World
from tests.wire.bodies import BODIES


def validator(event: str) -> jsonschema_rs.Draft202012Validator:
    """Return a validator for the event's bodies, with the document's schemas to resolve references."""
    document = openapi.document()
    schema = document["webhooks"][event]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return jsonschema_rs.Draft202012Validator(schema | {"components": document["components"]})


def event_of(name: str) -> str:
    event = re.split("[: ]", name)[0]
    return {"chunk": "create", "a": "create"}.get(event, event)


def test_bodies_of_the_contract_are_valid() -> None:
    validators = {event: validator(event) for event in {event_of(name) for name in BODIES}}
    invalid = {
        name: str(error)
        for name, body in BODIES.items()
        for error in validators[event_of(name)].iter_errors(json.loads(body))
    }
    assert invalid == {}


def test_examples_are_valid() -> None:
    for event, example in examples.examples().items():
        for variant in example.variants:
            validator(event).validate(json.loads(variant.body))


@pytest.mark.parametrize("event", webhook_schemas.EVENTS)
def test_bodies_with_a_field_more_or_less_are_not(event: str) -> None:
    body = json.loads(examples.examples()[event].variants[0].body)
    check = validator(event)
    assert not check.is_valid(body | {"more": 1})
    for field in body:
        assert not check.is_valid({name: value for name, value in body.items() if name != field}), field


def test_imported_repository_may_have_another_id() -> None:
    """`importing.validate` accepts these ids, and they stay."""
    body = json.loads(examples.examples()["create"].variants[0].body)
    body["repository"]["repository_id"] = "Portal-docs_1"
    validator("create").validate(body)


@pytest.mark.parametrize("event", ["create", "update", "delete", "sync_completed", "ping"])
def test_410_pauses_the_app_if_the_document_says_so(world: World, event: str) -> None:
    paths = ["a", "b", "c", "d"]
    repo, watch = world.watch(dict.fromkeys(paths, b"1"))
    App.objects.update(send_sync_completed=True)
    if event in {"update", "delete"}:
        world.settle()
        repo.commit(dict.fromkeys(paths, b"2" if event == "update" else None))
    world.answer(lambda note: Answer(410) if note.kind == event else None)
    if event == "ping":
        send_ping(Actor.command(), world.app)
    world.sync(watch)
    documented = openapi.document()["webhooks"][event]["post"]["responses"].get("410", {"description": ""})
    assert App.objects.get().paused == ("pauses your app" in documented["description"])


@pytest.mark.parametrize("event", ["create", "update", "delete", "sync_completed"])
def test_429_uses_up_no_attempt_if_the_document_says_so(world: World, event: str) -> None:
    repo, watch = world.watch({"a": b"1"})
    App.objects.update(send_sync_completed=True)
    if event in {"update", "delete"}:
        world.settle()
        repo.commit({"a": b"2" if event == "update" else None})
    world.answer(lambda note: Answer(429, headers={"Retry-After": "0"}) if note.kind == event else None)
    watch = world.sync(watch)
    documented = openapi.document()["webhooks"][event]["post"]["responses"]["429"]["description"]
    assert (watch.retry_count == 0) == ("uses up no attempt" in documented)


@pytest.mark.parametrize("event", ["create", "update", "delete", "sync_failed", "sync_completed", "ping"])
def test_responses_speak_of_files_and_repetitions_where_there_are_some(event: str) -> None:
    documented = openapi.document()["webhooks"][event]["post"]["responses"]
    is_about_a_file = event in {"create", "update", "delete"}
    assert ("file" in documented["2XX"]["description"]) == is_about_a_file
    assert ("After some repetitions" in str(documented)) == is_about_a_file


def test_every_header_is_documented_in_order() -> None:
    lines = Envelope("app_1", "run_1", "change").headers(b"{}", "msg_1", 1, 1, ["key"])
    names = [line.partition(":")[0] for line in lines]  # `examples.headers` fails with a KeyError for a new one
    assert names == ["Content-Type", *webhook_schemas.HEADERS]
    sent = [name for name, _, _ in examples.headers()]
    assert [name for name in sent if name not in {"Content-Type", "User-Agent"}] == list(webhook_schemas.HEADERS)


def test_reasons_and_causes_are_listed() -> None:
    assert re.findall("`(\\w+)`", webhook_schemas.HEADERS["X-Docora-Reason"]) == [*Reason.values, "verify", "ping"]
    reason = openapi.document()["components"]["schemas"]["NotifiedError"]["properties"]["reason"]
    assert re.findall("`(\\w+)`", reason["description"]) == [cause.value for cause in Cause]
