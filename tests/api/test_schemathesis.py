"""Schemathesis tests the whole API from its OpenAPI document, through the real WSGI application.

For any input, valid or not, with or without a token: no response is a 5xx, and status, content type, headers and body
are as documented. Every case is rolled back, so that each starts with the same rows.
"""

import hmac
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.db.models.functions import Now
from redis import Redis
from rq import Worker

from deliveries_app.actors import Actor
from deliveries_app.api import openapi
from deliveries_app.models import App, AppRepository
from deliveries_app.services import watch_repository
from deliveries_app.services.keys import start_key_rotation
from deliveries_app.services.watch_settings import renew_push_secret
from docora.redis import heartbeat
from docora.stack import with_large_stack
from tests.api.caller import token_of
from tests.support.git import GitFixture, Repo
from tests.support.staff import make_app

pytestmark = pytest.mark.django_db

OPERATIONS = [f"{method.upper()} {path}" for path, methods in openapi.document()["paths"].items() for method in methods]
IN_ROTATION = {"POST /api/app/ping", "POST /api/app/key/retire", "DELETE /api/app/key"}
GENERATION = {"max-examples": 6, "deterministic": True, "database": "none"}
PHASES = ("examples", "coverage", "fuzzing")
by_operation = pytest.mark.parametrize("operation", OPERATIONS)


@cache
def schema_for(mode: str, *phases: str, **checks: bool) -> Any:
    """Return the schema for data of this `mode`: all, or positive for valid input only.

    Its cases come from these phases: the document's examples, coverage (every boundary of every field, and for mode `all` also
    values that are missing, of the wrong type, too long and so on) and fuzzing.

    Schemathesis is imported here, because every process of a run collects this module, and few of them run it.
    """
    import schemathesis
    from schemathesis.checks import load_all_checks
    from schemathesis.config import SchemathesisConfig

    load_all_checks()
    config = {
        "seed": 1,
        "suppress-health-check": ["all"],
        "phases": {name: {"enabled": name in phases} for name in (*PHASES, "stateful")},
        "generation": GENERATION | {"mode": mode},
        "checks": {name: {"enabled": enabled} for name, enabled in checks.items()}
        | {"negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 409, 413, 422, 429]}},
    }
    # As in `docora.wsgi`, but without its thread, which would add to the counters of other tests.
    application = with_large_stack(get_wsgi_application())
    return schemathesis.openapi.from_wsgi("/openapi.json", application, config=SchemathesisConfig.from_dict(config))


def walk(schema: Any, operation: str, test: Callable[[Any], None]) -> None:
    """Call the test with every case that Schemathesis generates for this operation."""
    from schemathesis.generation.feedback import FeedbackSources
    from schemathesis.generation.hypothesis.builder import MissingPathParameters
    from schemathesis.pytest._test_builder import build_operation_test

    calls = 0

    def counted(case: Any) -> None:
        nonlocal calls
        calls += 1
        test(case)

    built = build_operation_test(
        config=schema.config,
        operation=schema.find_operation_by_label(operation),
        test_func=counted,
        given_kwargs={},
        feedback=FeedbackSources(),
    )
    built()
    assert calls > 0
    assert not MissingPathParameters.is_set(built)


@pytest.fixture(scope="module")
def git(tmp_path_factory) -> Iterator[GitFixture]:
    with GitFixture(Path(tmp_path_factory.mktemp("git"))) as git:
        yield git


@pytest.fixture(scope="module")
def repo(git: GitFixture) -> Repo:
    return git.repo("acme/widgets", {"readme.md": b"# Hello\n"})


@pytest.fixture
def watch(db, repo: Repo) -> AppRepository:
    return watch_repository(Actor.command(), make_app("Portal"), repo.url).watch


@pytest.fixture
def headers(watch: AppRepository) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_of(watch.app)}"}


@pytest.fixture(autouse=True)
def _one_connection() -> Iterator[None]:
    """Keep the connection open between requests, as closing it would end the test's transaction."""
    ends = (request_started, request_finished)
    for signal in ends:
        signal.disconnect(close_old_connections)
    yield
    for signal in ends:
        signal.connect(close_old_connections)


class Caller:
    """Runs cases, each with the rows and the Redis of a process that has just started: the throttle knows no earlier ones."""

    def __init__(self, redis: Redis) -> None:
        heartbeat.beat()
        Worker(["high"], connection=redis).register_birth()
        self._redis, self._state = redis, {key: redis.dump(key) for key in redis.scan_iter()}

    def __call__(self, case: Any, **kwargs: Any) -> Any:
        with self._redis.pipeline() as pipeline:
            pipeline.flushall()
            for key, value in self._state.items():
                pipeline.restore(key, 0, value)
            pipeline.execute()
        with transaction.atomic():
            response = case.call_and_validate(**kwargs)
            transaction.set_rollback(True)
        return response


@pytest.fixture
def call(redis_client: Redis) -> Caller:
    return Caller(redis_client)


@by_operation
def test_any_request_with_a_token(operation: str, headers: dict[str, str], call: Caller) -> None:
    # A valid URL need not lead to a repository, nor a valid id be the caller's. The last test below has the check `ignored_auth`,
    # which repeats calls without a valid token.
    schema = schema_for("all", *PHASES, positive_data_acceptance=False, ignored_auth=False)
    walk(schema, operation, lambda case: call(case, headers=headers))


@by_operation
def test_any_request_without_a_token(operation: str, db, call: Caller) -> None:
    def is_refused(case: Any) -> None:
        response = call(case)
        if case.path.startswith("/api/"):
            assert response.status_code >= 400

    # These calls check the token before their input.
    needs_token = operation.partition(" ")[2].startswith(("/api/repositories", "/api/app"))
    phases = [phase for phase in PHASES if phase != "coverage" or not needs_token]
    walk(schema_for("all", *phases, positive_data_acceptance=False), operation, is_refused)


@by_operation
def test_documented_calls_work_for_a_watched_repository(
    operation: str, watch: AppRepository, repo: Repo, headers: dict[str, str], call: Caller
) -> None:
    from schemathesis.core import NOT_SET

    def works(case: Any) -> None:
        if "repository_id" in case.path_parameters:
            case.path_parameters["repository_id"] = watch.repository.repository_id
        if "manifest" not in operation:
            case.query.pop("after", None)  # only the `next` of a page is valid
        if "run_id" in case.path_parameters:
            case.path_parameters["run_id"] = watch.runs.get().run_id
        if operation in {"POST /api/repositories", "PUT /api/repositories"}:
            case.body["github_url"] = repo.url
        if operation == "PUT /api/repositories":
            case.body = {"github_url": repo.url}  # random refs and patterns are rarely valid
        if operation == "PATCH /api/app":
            case.body.pop("max_in_flight", None)  # may be above the administrator's limit
        if operation == "POST /api/app/key":
            case.body = {}  # a random key is rarely one that a library can use
        if operation in IN_ROTATION and not App.objects.get().is_rotating_key:
            start_key_rotation(Actor.command(), watch.app)
            App.objects.update(new_key_accepted_at=Now())
        if operation.startswith("POST /api/hooks/"):  # a random signature is never valid
            secret = renew_push_secret(Actor.command(), watch)
            body = json.dumps(case.body).encode() if case.body is not NOT_SET else b""
            case.headers["X-Hub-Signature-256"] = "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()
        assert call(case, headers=headers).status_code < 300

    walk(schema_for("positive", *PHASES), operation, works)
