"""Schemathesis tests the whole API from its OpenAPI document, through the real WSGI application.

For any input, valid or not, with or without a token: no response is a 5xx, and status, content type, headers and body
are as documented. Every case is rolled back, so that each starts with the same rows.
"""

import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.db.models.functions import Now
from redis import Redis
from rq import Worker
from schemathesis.checks import load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.schemas import OpenApiSchema

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository
from deliveries_app.services import watch_repository
from deliveries_app.services.keys import start_key_rotation
from deliveries_app.services.watch_settings import renew_push_secret
from docora.redis import heartbeat
from docora.stack import roomy
from tests.api.caller import token_of
from tests.support.git import GitFixture, Repo
from tests.support.staff import make_app

load_all_checks()
pytestmark = pytest.mark.django_db

IN_ROTATION = {"POST /api/app/ping", "POST /api/app/key/retire", "DELETE /api/app/key"}
GENERATION = {"max-examples": 12, "deterministic": True, "database": "none"}


def walk(mode: str, **checks: bool) -> OpenApiSchema:
    """Return the schema for data of this `mode`: all, or positive for valid input only."""
    config = {
        "seed": 1,
        "suppress-health-check": ["all"],
        "generation": GENERATION | {"mode": mode},
        "checks": {name: {"enabled": enabled} for name, enabled in checks.items()}
        | {"negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 409, 413, 422, 429]}},
    }
    # As in `docora.wsgi`, but without its thread, which would add to the counters of other tests.
    application = roomy(get_wsgi_application())
    return schemathesis.openapi.from_wsgi("/openapi.json", application, config=SchemathesisConfig.from_dict(config))


# A valid URL may not lead to a repository, and a valid id may not be the caller's.
anything = walk("all", positive_data_acceptance=False)
sensible = walk("positive")


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


def call(case: schemathesis.Case, redis: Redis, **kwargs) -> schemathesis.Response:
    """Run one case without the throttle state of earlier ones."""
    redis.flushall()
    heartbeat.beat(heartbeat.SWEEP)
    Worker(["high"], connection=redis).register_birth()
    with transaction.atomic():
        response = case.call_and_validate(**kwargs)
        transaction.set_rollback(True)
    return response


@anything.parametrize()
def test_any_request_with_a_token(case: schemathesis.Case, headers: dict[str, str], redis_client: Redis) -> None:
    call(case, redis_client, headers=headers)


@anything.parametrize()
def test_any_request_without_a_token(case: schemathesis.Case, db, redis_client: Redis) -> None:
    response = call(case, redis_client)
    if case.path.startswith("/api/"):
        assert response.status_code >= 400


@sensible.parametrize()
def test_documented_calls_work_for_a_watched_repository(
    case: schemathesis.Case, watch: AppRepository, repo: Repo, headers: dict[str, str], redis_client: Redis
) -> None:
    if "repository_id" in case.path_parameters:
        case.path_parameters["repository_id"] = watch.repository.repository_id
    label = case.operation.label
    if "manifest" not in label:
        case.query.pop("after", None)  # only the `next` of a page is valid
    if "run_id" in case.path_parameters:
        case.path_parameters["run_id"] = watch.runs.get().run_id
    if label in {"POST /api/repositories", "PUT /api/repositories"}:
        case.body["github_url"] = repo.url
    if label == "PUT /api/repositories":
        case.body = {"github_url": repo.url}  # random refs and patterns are rarely valid
    if label == "PATCH /api/app":
        case.body.pop("max_in_flight", None)  # may be above the administrator's limit
    if label == "POST /api/app/key":
        case.body = {}  # a random key is rarely one that a library can use
    if label in IN_ROTATION and not App.objects.get().is_rotating_key:
        start_key_rotation(Actor.command(), watch.app)
        App.objects.update(new_key_accepted_at=Now())
    if label.startswith("POST /api/hooks/"):  # a random signature is never valid
        secret = renew_push_secret(Actor.command(), watch)
        body = json.dumps(case.body).encode() if case.body is not NOT_SET else b""
        case.headers["X-Hub-Signature-256"] = "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()
    assert call(case, redis_client, headers=headers).status_code < 300
