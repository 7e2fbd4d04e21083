"""Every error below `/api/` has the same shape and says what to do."""

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.utils import DatabaseErrorWrapper
from django.test import Client, RequestFactory

from deliveries_app import services
from deliveries_app.monitoring import health
from docora.db.connection import is_outage
from docora.sign_in.middleware import ACTIVE_AT
from docora.web.api import body_chunks
from docora.web.errors import ApiError, database_down
from tests.api.caller import Caller, error_of
from tests.support.postgres import PostgresServer
from tests.support.read_only import read_only
from tests.support.staff import staff

URL = "/api/repositories"


UNKNOWN = ["/api/", "/api/nothing", "/api/repositories/", "/api/hooks/push/", "/api/docs", "/admin/api/nothing"]


@pytest.mark.parametrize("path", [*UNKNOWN, "/health/", "/version/", "/openapi.json/"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path_is_404_and_names_the_documentation(method: str, path: str) -> None:
    """Clients send no CSRF token, so an unknown path must not require one."""
    assert "API reference at /docs/" in error_of(Client(enforce_csrf_checks=True).generic(method, path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("patch", URL, "GET, HEAD, POST, PUT"),
        ("options", URL, "GET, HEAD, POST, PUT"),
        ("post", f"{URL}/repo_1", "DELETE, GET, HEAD"),
        ("get", f"{URL}/repo_1/token", "PATCH"),
        ("get", "/api/hooks/push/repo_1", "POST"),
        ("post", "/api/openapi.json", "GET, HEAD"),
        ("post", "/openapi.json", "GET, HEAD"),
        ("post", "/health", "GET, HEAD"),
        ("put", "/health/ready", "GET, HEAD"),
        ("delete", "/version", "GET, HEAD"),
        ("get", "/admin/api/resync", "POST"),
    ],
)
def test_wrong_method_is_405_and_names_the_right_ones(method: str, path: str, allowed: str) -> None:
    answer = getattr(Client(enforce_csrf_checks=True), method)(path)
    assert error_of(answer, 405) == f"{method.upper()} is not allowed here: use {allowed}"
    assert answer.headers["Allow"] == allowed


@pytest.mark.parametrize("body", ["{", "[1,]", "{'a': 1}", '"' + "\x00", "[" * 20_000, "NaN", "null"])
def test_malformed_json_is_422(portal: Caller, body: str) -> None:
    message = error_of(portal.client.post(URL, body, content_type="application/json"), 422)
    assert "JSON" in message


def test_invalid_utf_8_is_422(portal: Caller) -> None:
    answer = portal.client.post(URL, b'{"github_url": "\xff\xfe"}', content_type="application/json")
    assert "not valid JSON" in error_of(answer, 422)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_other_content_type_is_422(portal: Caller, content_type: str) -> None:
    answer = portal.client.generic("POST", URL, b'{"github_url": "x"}', content_type=content_type)
    assert "Content-Type: application/json" in error_of(answer, 422)


def test_charset_parameter_is_accepted(portal: Caller) -> None:
    answer = portal.client.post(URL, "{}", content_type="application/json; charset=utf-8")
    assert error_of(answer, 422) == "The field github_url is required"


def test_missing_body_is_422(portal: Caller) -> None:
    answer = portal.client.generic("POST", URL, b"", content_type="application/json")
    assert "must be a JSON object" in error_of(answer, 422)


def test_all_mistakes_are_reported_at_once(portal: Caller) -> None:
    message = error_of(portal.post("", {"github_url": "", "github_token": 7}), 422)
    assert message == "The field github_url must not be empty; The field github_token must be a string"


def test_hundreds_of_query_parameters_are_422(portal: Caller, caplog) -> None:
    assert error_of(portal.client.get(f"{URL}?{'page=1&' * 1001}"), 422) == "There are too many query parameters"
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(("path", "verb"), [(URL, "post"), (f"{URL}/repo_1/token", "patch")])
def test_large_body_is_413(portal: Caller, path: str, verb: str) -> None:
    body = json.dumps({"github_url": "x" * 70_000})
    answer = getattr(portal.client, verb)(path, body, content_type="application/json")
    assert "at most 65,536 bytes" in error_of(answer, 413)
    assert answer.wsgi_request._read_started is False


@pytest.mark.parametrize(("path", "verb"), [(URL, "post"), (f"{URL}/repo_1/token", "patch")])
def test_body_of_an_unknown_caller_is_not_read(client: Client, path: str, verb: str) -> None:
    answer = getattr(client, verb)(path, "{}", content_type="application/json")
    error_of(answer, 401)
    assert answer.wsgi_request._read_started is False


def chunked(content: bytes):
    """A chunked request, without Content-Length, as the web server passes it on."""
    request = RequestFactory().post(URL)
    del request.META["CONTENT_LENGTH"]
    request.META |= {"wsgi.input": BytesIO(content), "wsgi.input_terminated": True}
    return request


def test_chunked_body_is_bounded() -> None:
    assert b"".join(body_chunks(chunked(b"x" * 200_000), 200_000)) == b"x" * 200_000
    with pytest.raises(ApiError, match="at most 199,999 bytes"):
        list(body_chunks(chunked(b"x" * 200_000), 199_999))


def test_unexpected_error_is_logged_and_hidden(portal: Caller, monkeypatch, caplog) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(services, "watch_repository", fail)
    with caplog.at_level(logging.ERROR):
        message = error_of(portal.post("", {"github_url": "https://127.0.0.1/a/b"}), 500)
    assert message == "Internal error: see Docora's log"
    assert "the secret cause" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_database_outage(portal: Caller, postgres_server: PostgresServer, caplog) -> None:
    admin = staff("anna", "view_app")
    admin.raise_request_exception = False
    connection.close()
    postgres_server.stop()
    try:
        with caplog.at_level(logging.WARNING):
            page, answer = admin.get("/admin/"), portal.get()
            json_answer = admin.get("/admin/api/retry/progress/bulk_0")
    finally:
        postgres_server.start()  # other tests need it
        connection.close()
    assert (page.status_code, page["Content-Type"]) == (503, "text/html; charset=utf-8")
    assert "The database isn't responding" in page.text
    assert error_of(answer, 503) == error_of(json_answer, 503) == "The database isn't responding: try again in a minute"
    assert (answer.json()["code"], answer.json()["retryable"]) == ("unavailable", True)
    assert [record.getMessage() for record in caplog.records] == ["request_without_database"] * 3
    assert all("connection" in record.cause for record in caplog.records)
    assert "Traceback" not in caplog.text


@contextlib.contextmanager
def read_only_database() -> Iterator[None]:
    """Have the database refuse writes: as PostgreSQL does on a replica, or as SQLite does with another user's file."""
    if connection.vendor == "sqlite":
        connection.close()
        with read_only(Path(connection.settings_dict["NAME"])):
            yield
            connection.close()
        return
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    try:
        yield
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_read_only_database(portal: Caller, caplog) -> None:
    """DATABASE_URL points to a replica after a failover, or a hosted database is full. Or SQLite's file is another user's."""
    admin = staff("anna", "view_app")
    admin.raise_request_exception = False
    session = admin.session
    session[ACTIVE_AT] = time.time() - 600  # so that the request stores a later time
    session.save()
    reader = staff("otto", "view_app")
    staff_of_queue = staff("quinn", "view_queue")
    with read_only_database(), caplog.at_level(logging.WARNING):
        page, answer = (
            admin.get("/admin/"),
            portal.client.post("/api/app/ping", {}, content_type="application/json"),
        )
        probe = portal.client.get("/health/ready").json()["checks"]["database"]
        assert reader.get("/admin/").status_code == 200
        pages = [staff_of_queue.get(url).text for url in ("/admin/", "/admin/deliveries_app/queue/")]
    assert page.status_code == 503
    assert "The database is read-only" in page.text
    assert "Docora can't store anything until it accepts writes." in page.text
    for text in pages:  # no sweep runs in this test, as if it waited for the database
        assert "The database is read-only." in text
        assert "The sweep is not running." not in text
    assert "if it is read-only, only to requests that store something." in reader.get("/docs/operations/").text
    assert error_of(answer, 503) == "The database is read-only: try again in a minute"
    is_file = connection.vendor == "sqlite"
    assert probe == (health.SQLITE_READ_ONLY if is_file else health.DATABASE_READ_ONLY)
    assert all(("Docora's user owns the database file" in text) == is_file for text in pages)
    assert [record.getMessage() for record in caplog.records[:2]] == ["request_without_database"] * 2
    assert "Traceback" not in caplog.text


@pytest.mark.django_db(transaction=True)
def test_full_database_disk(portal: Caller, postgres_server: PostgresServer, caplog) -> None:
    """PostgreSQL rejects what doesn't fit into its files, and still answers the rest."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        cursor.execute("CREATE TRIGGER full_disk BEFORE INSERT ON deliveries_app_apprepository EXECUTE FUNCTION fail()")
    try:
        with caplog.at_level(logging.WARNING):
            body = {"github_url": "https://127.0.0.1/acme/docs"}
            answer = portal.client.post(URL, body, content_type="application/json", headers={"Prefer": "respond-async"})
            listed = portal.get()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION fail CASCADE")
    assert error_of(answer, 503) == "The database's disk is full: try again in a minute"
    assert (answer.json()["code"], answer.json()["retryable"]) == ("unavailable", True)
    assert listed.status_code == 200
    assert [record.getMessage() for record in caplog.records] == ["request_without_database"]
    assert "No space left on device" in caplog.records[0].cause
    assert "Traceback" not in caplog.text


def test_full_disk_of_sqlite(rf, tmp_path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "full.sqlite3")) as database:
        database.execute("CREATE TABLE example (content)")
        database.execute("PRAGMA max_page_count = 10")
        with pytest.raises(OperationalError) as caught, DatabaseErrorWrapper(DatabaseWrapper({})):
            database.execute("INSERT INTO example VALUES (zeroblob(1000000))")
    page = database_down(rf.get("/admin/"), caught.value)
    assert page.status_code == 503
    assert "The database's disk is full" in page.text
    assert "Free up space on the disk of the database." in page.text


def test_faulty_statement_is_not_an_outage(db) -> None:
    for statement in ("SELECT none", "SELECT abs(CAST(-9223372036854775808 AS bigint))"):
        with pytest.raises(DatabaseError) as caught, transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
        assert not is_outage(caught.value)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no such timeout")
@pytest.mark.parametrize("code", ["query_canceled", "lock_not_available", "too_many_connections", "connection_failure"])
def test_statement_that_the_server_has_ended_is_an_outage(db, code: str) -> None:
    statement = f"DO $$ BEGIN RAISE 'canceling statement due to statement timeout' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(OperationalError) as caught, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert is_outage(caught.value)
