"""The admin JSON: messages and numbers as in the contract, and every error as JSON."""

import json

import pytest
from django.contrib.auth.models import User
from django.test import Client

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.models.root_causes import RootCause
from docora.web.errors import NOT_FOUND
from tests.support.staff import VIEWS, fail, make_app, staff


def generations() -> list[int]:
    return list(AppRepository.objects.order_by("pk").values_list("generation", flat=True))


def post(client: Client, path: str, body: object = None):
    data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return client.post(f"/admin/api/{path}", data, content_type="application/json")


def ids_of(watch: AppRepository) -> dict[str, str]:
    return {"app_id": watch.app.app_id, "repository_id": watch.repository.repository_id}


def test_resync_returns_the_job_id(operator: Client, watches) -> None:
    answer = post(operator, "resync", ids_of(watches[0]))
    assert answer.json() == {"data": {"message": "Re-sync queued", "job_id": watches[0].job_id}}
    assert generations() == [2, 1, 1]


def test_app_resync_is_started_polled_and_cancelled(operator: Client, watches) -> None:
    started = post(operator, f"resync/app/{watches[0].app.app_id}").json()["data"]
    operation = BulkOperation.objects.get()
    assert started == {"message": "Bulk re-sync started", "operation_id": operation.operation_id, "total": 2}
    shown = operator.get(f"/admin/api/retry/progress/{operation.operation_id}").json()["data"]
    assert {name: shown[name] for name in ("total", "completed", "files_total", "files_done", "percent", "finished")} == {
        "total": 2, "completed": 0, "files_total": 200, "files_done": 0, "percent": 0, "finished": False,
    }  # fmt: skip
    assert post(operator, f"retry/cancel/{operation.operation_id}").json() == {
        "data": {"message": "Cancellation requested"}
    }
    shown = operator.get(f"/admin/api/retry/progress/{operation.operation_id}").json()["data"]
    assert (shown["cancelled"], shown["finished"]) == (2, True)


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("resync", {}, 400, "app_id and repository_id are required"),
        ("resync", {"app_id": "app_1"}, 400, "app_id and repository_id are required"),
        ("resync", {"app_id": 1, "repository_id": 2}, 400, "app_id and repository_id are required"),
        ("resync", {"app_id": "app_1", "repository_id": "repo_1"}, 404, "App-repository link not found"),
        ("resync", {"app_id": "a\0", "repository_id": "repo_1"}, 404, "App-repository link not found"),
        ("resync/app/app_unknown", {}, 404, "App not found"),
        ("resync/app/a%00b", {}, 404, NOT_FOUND),
        ("retry/cancel/bulk_unknown", {}, 404, "Operation not found or expired"),
        ("nowhere", {}, 404, NOT_FOUND),
    ],
)
def test_errors_follow_the_contract(
    operator: Client, watches, path: str, body: object, status: int, error: str
) -> None:
    answer = post(operator, path, body)
    assert (answer.status_code, answer.json()["error"]) == (status, error)


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"null", b'"x"'])
def test_body_must_be_a_json_object(operator: Client, watches, body: bytes) -> None:
    answer = post(operator, "resync", body)
    assert answer.status_code == 400
    assert answer.json()["code"] == "invalid_request"


def test_app_without_repositories_is_an_error(operator: Client, db) -> None:
    app = make_app("Empty")
    answer = post(operator, f"resync/app/{app.app_id}")
    assert (answer.status_code, answer.json()["error"]) == (404, "No repositories for this app")
    services.delete_app(Actor.command(), app)
    answer = post(operator, f"resync/app/{app.app_id}")
    assert (answer.status_code, answer.json()["error"]) == (404, "App not found")


def test_internal_error_hides_its_cause(operator: Client, watches, monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(services, "resync_single", fail)
    monkeypatch.setattr(services, "resync_by_app", fail)
    answers = [post(operator, "resync", ids_of(watches[0])), post(operator, f"resync/app/{watches[0].app.app_id}")]
    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [
        (500, "Failed to queue re-sync"),
        (500, "Failed to start bulk re-sync"),
    ]


def test_anonymous_is_401_and_missing_permission_is_403(watches) -> None:
    User.objects.create_user("customer", password="x")
    customer = Client(enforce_csrf_checks=True)
    customer.force_login(User.objects.get(username="customer"))
    for path in ("resync", f"resync/app/{watches[0].app.app_id}", "retry/cancel/bulk_x"):
        anonymous = post(Client(enforce_csrf_checks=True), path, ids_of(watches[0]))
        assert (anonymous.status_code, anonymous.json()["code"]) == (401, "unauthorized"), path
        assert post(customer, path, ids_of(watches[0])).status_code == 403, path
        viewer = staff(f"viewer-{len(path)}", *(f"view_{model}" for model in VIEWS))
        assert post(viewer, path, ids_of(watches[0])).status_code == 403, path
    assert Client().get("/admin/api/repositories").status_code == 401
    clerk = staff("clerk", "view_app")
    assert clerk.get("/admin/api/repositories").status_code == 403
    assert generations() == [1, 1, 1]


def test_missing_csrf_token_is_refused_as_json(watches) -> None:
    User.objects.create_superuser("root", password="x")
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="root"))
    answer = post(client, "resync", ids_of(watches[0]))
    assert answer.status_code == 403
    assert "CSRF" in answer.json()["error"]
    assert generations() == [1, 1, 1]


def test_watches_are_listed_filtered_and_paged(operator: Client, watches) -> None:
    def listed(query: str) -> set[tuple[str, str]]:
        data = operator.get(f"/admin/api/repositories?{query}").json()["data"]
        return {(row["app_id"], row["name"]) for row in data["repositories"]}

    portal, search = watches[0].app.app_id, watches[2].app.app_id
    assert listed("") == {(portal, "docs"), (portal, "site"), (search, "docs")}
    assert listed(f"app_id={portal}") == {(portal, "docs"), (portal, "site")}
    assert listed("search=site") == {(portal, "site")}
    assert listed("search=acme/site") == {(portal, "site")}
    assert listed("status=failed") == set()
    assert operator.get("/admin/api/repositories?search=%00").status_code == 400
    assert "ghp_secret" not in operator.get("/admin/api/repositories").text
    services.unwatch_repository(Actor.command(), watches[1])
    assert listed(f"app_id={portal}") == {(portal, "docs")}


@pytest.mark.parametrize(
    ("path", "permission", "view"),
    [
        ("resync", "resync_apprepository", "view_apprepository"),
        ("resync/app/{app}", "resync_apprepository", "view_app"),
        ("retry", "retry_apprepository", "view_apprepository"),
        ("retry/app/{app}", "retry_apprepository", "view_apprepository"),
        ("retry/all", "retry_apprepository", "view_apprepository"),
    ],
)
def test_calls_need_what_the_button_needs(watches, path: str, permission: str, view: str) -> None:
    fail(watches[0], RootCause.DNS)
    path = path.format(app=watches[0].app.app_id)
    assert post(staff("bot", permission), path, ids_of(watches[0])).status_code == 403
    assert not SyncRun.objects.exists()
    assert post(staff("anna", permission, view), path, ids_of(watches[0])).status_code == 200
    assert SyncRun.objects.exists()
