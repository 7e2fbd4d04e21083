"""Retry through the admin JSON: messages and codes as in the contract, and the operation."""

import json

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, Reason, SyncRun
from deliveries_app.models.root_causes import RootCause
from tests.support.staff import fail, make_app, staff

SIGN_IN, FORBIDDEN = "Sign in to the admin first", "You don't have permission to do this"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", "view_apprepository", "retry_apprepository")


@pytest.fixture
def failing(watches: list[AppRepository]) -> list[AppRepository]:
    """Portal's first repository and Search's one; Portal's second is synced."""
    fail(watches[0], RootCause.SERVER_ERROR, status=502)
    fail(watches[2], RootCause.DNS)
    return watches


def post(client: Client, path: str, body: object = None):
    return client.post(f"/admin/api/{path}", json.dumps(body or {}), content_type="application/json")


def ids_of(watch: AppRepository) -> dict[str, str]:
    return {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}


def answered(answer) -> tuple[int, dict[str, object]]:
    """Return the status and the body; for an error, only its message."""
    body = answer.json()
    return answer.status_code, {"error": body["error"]} if "error" in body else body


def retried() -> int:
    return SyncRun.objects.filter(reason=Reason.RETRY, outcome="").count()


def test_retry_returns_the_job_id(operator: Client, failing) -> None:
    answer = post(operator, "retry", ids_of(failing[0]))
    assert answered(answer) == (200, {"data": {"message": "Retry queued", "job_id": failing[0].job_id}})
    assert SyncRun.objects.get(reason=Reason.RETRY).watch == failing[0]


@pytest.mark.parametrize(("path", "total"), [("retry/app/{app}", 1), ("retry/all", 2)])
def test_app_and_global_retries(operator: Client, failing, path: str, total: int) -> None:
    answer = post(operator, path.format(app=failing[0].app.app_id))
    operation = BulkOperation.objects.get()
    assert answered(answer) == (
        200,
        {"data": {"message": "Bulk retry started", "operation_id": operation.operation_id, "total": total}},
    )
    assert operation.kind == "retry"
    shown = operator.get(f"/admin/api/retry/progress/{operation.operation_id}").json()["data"]
    assert (shown["total"], shown["completed"], shown["cancelled"], shown["finished"]) == (total, 0, 0, False)
    stopped = post(operator, f"retry/cancel/{operation.operation_id}")
    assert answered(stopped) == (200, {"data": {"message": "Cancellation requested"}})
    shown = operator.get(f"/admin/api/retry/progress/{operation.operation_id}").json()["data"]
    assert (shown["cancelled"], shown["finished"]) == (total, True)
    assert retried() == 0


def test_retry_of_a_healthy_watch_is_a_conflict(operator: Client, failing) -> None:
    assert answered(post(operator, "retry", ids_of(failing[1]))) == (
        409,
        {"error": "Only failed entries can be retried"},
    )


@pytest.mark.parametrize("body", [{}, {"app_id": "app_1"}, {"app_id": 1, "repository_id": 2}, {"repository_id": "r"}])
def test_both_ids_are_required(operator: Client, failing, body: object) -> None:
    assert answered(post(operator, "retry", body)) == (400, {"error": "app_id and repository_id are required"})


def test_unknown_ids_follow_the_contract(operator: Client, failing) -> None:
    empty = make_app("Empty").app_id
    unknown = {"app_id": "app_1", "repository_id": "repo_1"}
    assert answered(post(operator, "retry", unknown)) == (404, {"error": "App-repository link not found"})
    for app_id in (empty, "app_unknown"):
        wanted = (404, {"error": "No failed notifications for this app"})
        assert answered(post(operator, f"retry/app/{app_id}")) == wanted
    AppRepository.objects.update(failing_since=None, root_cause="")
    assert answered(post(operator, "retry/all")) == (404, {"error": "No failed notifications found"})
    for path in ("retry/cancel/bulk_unknown", "retry/cancel/all"):
        assert answered(post(operator, path)) == (404, {"error": "Operation not found or expired"})


def test_internal_error_hides_its_cause(operator: Client, failing, monkeypatch, caplog) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("password=hunter2")

    for name in ("retry_single", "retry_by_app", "retry_all"):
        monkeypatch.setattr(services, name, broken)
    assert answered(post(operator, "retry", ids_of(failing[0]))) == (500, {"error": "Failed to queue retry"})
    for path in (f"retry/app/{failing[0].app.app_id}", "retry/all"):
        assert answered(post(operator, path)) == (500, {"error": "Failed to start bulk retry"})
    assert "hunter2" in caplog.text


def test_anonymous_is_401_and_missing_permission_is_403(client: Client, failing) -> None:
    stranger = staff("norbert", "view_apprepository", "view_bulkoperation", "resync_apprepository")
    for path in ("retry", f"retry/app/{failing[0].app.app_id}", "retry/all"):
        body = ids_of(failing[0])
        assert answered(post(client, path, body)) == (401, {"error": SIGN_IN})
        assert answered(post(stranger, path, body)) == (403, {"error": FORBIDDEN})
        assert client.get(f"/admin/api/{path}").status_code == 405
    assert retried() == 0


def test_cancelling_needs_the_permission_of_the_kind(failing) -> None:
    retries, resyncs = staff("rita", "retry_apprepository"), staff("robert", "resync_apprepository")
    retry = services.retry_all(Actor.system())
    resync = services.resync_many(Actor.system(), AppRepository.objects.filter(pk=failing[1].pk))
    for client, operation in ((resyncs, retry), (retries, resync)):
        assert answered(post(client, f"retry/cancel/{operation.operation_id}")) == (403, {"error": FORBIDDEN})
        assert client.get(f"/admin/api/retry/progress/{operation.operation_id}").status_code == 200
    for client, operation in ((retries, retry), (resyncs, resync)):
        assert post(client, f"retry/cancel/{operation.operation_id}").status_code == 200


def test_missing_csrf_token_is_refused_as_json(failing) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root", password="x"))
    for path in ("retry", "retry/all"):
        answer = post(client, path, ids_of(failing[0]))
        assert answer.status_code == 403
        assert answer.json()["code"] == "forbidden"
    assert retried() == 0
