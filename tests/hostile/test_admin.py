"""Every URL below /admin/ and /accounts/, from the URL configuration: without permission nothing changes, whatever the method."""

import re
from collections.abc import Iterator
from functools import cache
from urllib.parse import unquote

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.db import connection
from django.http import HttpResponse
from django.template.response import SimpleTemplateResponse
from django.test import Client
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.models.root_causes import RootCause
from tests.deliveries.test_resend import add_deliveries
from tests.hostile.conftest import visitor
from tests.support.audit import by_users
from tests.support.staff import VIEWS, fail

STAFF_PAGES = {"/admin/", "/admin/logout/", "/admin/password_change/", "/admin/password_change/done/"}
STAFF_PAGES |= {"/admin/jsi18n/"}
PUBLIC_PAGES = {"/admin/login/"}
OTHER_METHODS = ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "X" * 1000]
IGNORED = {"session", "logentry", "auditentry", "contenttype", "permission"}


def routes(resolver: URLResolver, before: str = "/") -> Iterator[str]:
    """Yield every route as written, such as `/admin/live/<int:pk>/`, except the two regular expressions of the
    admin site: its catch-all and the index of an app."""
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from routes(entry, route)
        elif isinstance(entry, URLPattern) and not re.search(r"[\^$(]", route):
            yield route


ROUTES = sorted({route for route in routes(get_resolver()) if route.startswith(("/admin/", "/accounts/"))})
STAFF_PAGES |= {route for route in ROUTES if route.startswith("/accounts/")}  # everyone's own account


def address(route: str, watch: AppRepository, operation: BulkOperation) -> str:
    """Return the route with the ids of existing rows."""
    model = route.split("/")[3] if route.count("/") > 3 else ""
    ids = {
        "app": watch.app_id,
        "apprepository": watch.pk,
        "repository": watch.repository_id,
        "bulkoperation": operation.pk,
    }
    named = {"app_id": watch.app.app_id, "operation_id": operation.operation_id, "pk": watch.pk}

    def fill(match: re.Match[str]) -> str:
        name = match[1].rpartition(":")[2]
        return str(named[name] if name in named and model not in ids else ids.get(model, 1))

    return re.sub(r"<([^>]+)>", fill, route)


@pytest.fixture
def operation(watches) -> BulkOperation:
    operation = BulkOperation.objects.create(title="Everything", total=1, requested_by="olga")
    SyncRun.objects.create(watch=watches[0], operation=operation, generation=1, reason="resync", requested_by="olga")
    return operation


def state() -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of the database by table, except sessions, logs and sign-in attempts."""
    rows = {}
    with connection.cursor() as cursor:
        for table, query in _queries().items():
            cursor.execute(query)
            rows[table] = cursor.fetchall()
    return rows


@cache
def _queries() -> dict[str, str]:
    """Return the query of each table. Django would build each of them hundreds of times."""
    tables = [model._meta for model in apps.get_models(include_auto_created=True) if not model._meta.proxy]
    queries = {}
    for table in tables:
        if table.model_name not in IGNORED and table.managed:
            columns = [f'"{field.column}"' for field in table.local_concrete_fields if field.column != "last_login"]
            queries[table.db_table] = (
                f'SELECT {", ".join(columns)} FROM "{table.db_table}" ORDER BY "{table.pk.column}"'
            )
    return queries


FORGED: dict[str, str] = {
    "post": "yes",
    "action": "force_resync",
    "_selected_action": "1",
    "ids": "1",
    "all": "1",
    "confirm": "yes",
    "name": "Forged",
    "base_url": "https://forged.example",
    "email": "forged@forged.example",
    "max_in_flight": "1",
    "username": "forged",
    "password1": "a-long-enough-passphrase",
    "password2": "a-long-enough-passphrase",
    "usable_password": "true",
    "is_superuser": "on",
    "is_staff": "on",
    "github_url": "http://127.0.0.1/acme/forged",
    "github_token": "ghp_forged",
    "ignore_patterns": "*",
    "overlap": "0",
    "client_auth_key": "a-key-of-the-forger",
    "key": "new",
}


CONFIRMATIONS = [
    route for route in ROUTES if re.fullmatch(r"/admin/\w+_app/\w+/(force-resync|remove|retry-failed|resend)/", route)
]
"""Pages that confirm an action on selected rows."""


def test_routes_are_found() -> None:
    assert len(ROUTES) > 60
    known = {"/admin/deliveries_app/app/<path:object_id>/delete/", "/admin/api/resync", "/admin/live/<int:pk>/"}
    assert known <= set(ROUTES)
    assert len(CONFIRMATIONS) == 8


def group_of(route: str) -> str:
    """Return the part of the site: a model with many pages, an app, or the rest of the admin or of the accounts. A page that
    signs out is on its own, because users who post to it have no session afterwards."""
    site, app, model = f"{route}///".split("/")[1:4]
    if app == "logout":
        return route
    if model in {"app", "apprepository"}:
        return model
    return app if app.endswith("_app") or app == "auth" else site


GROUPS = {group: [route for route in ROUTES if group_of(route) == group] for group in map(group_of, ROUTES)}
by_group = pytest.mark.parametrize("group", GROUPS)


@by_group
def test_staff_without_permission_change_nothing(group: str, watches, operation: BulkOperation) -> None:
    unprivileged, viewer = visitor("norbert"), visitor("victor", *(f"view_{model}" for model in VIEWS))
    before = state()
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        for data in ({}, FORGED):
            refused, seen = unprivileged.post(url, data), viewer.post(url, data)
            assert seen.status_code < 500, url
            if route not in STAFF_PAGES | PUBLIC_PAGES and not is_standard_redirect(refused):
                assert refused.status_code in {400, 403, 404, 405}, url
    assert state() == before
    assert not by_users().exists()


def is_standard_redirect(response: HttpResponse) -> bool:
    """Return whether Django redirects from `<id>/` to `<id>/change/`, or to the index for an unknown row."""
    return re.fullmatch(r"/admin/(\w+/\w+/\d+/change/)?", response.headers.get("Location", "")) is not None


@by_group
def test_anonymous_post_changes_nothing(group: str, watches, operation: BulkOperation) -> None:
    before, anonymous = state(), Client(raise_request_exception=False)
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        response = anonymous.post(url, FORGED)
        if response.status_code == 302:
            assert (
                response.headers["Location"].startswith(("/admin/login/", "/accounts/")) or route == "/admin/logout/"
            ), url
        else:
            assert response.status_code in {200, 401, 403, 404, 405, 410}, url
            assert response.status_code != 200 or "errornote" in response.text, url
    assert state() == before


@by_group
def test_post_without_a_csrf_token_is_rejected(group: str, watches, operation: BulkOperation) -> None:
    root = visitor("root", superuser=True, checks_csrf=True)
    before = state()
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        response = root.post(url, FORGED)
        assert response.status_code in {403, 405}, url
        assert response.status_code == 405 or re.search("CSRF|This form has expired", response.text), url
    assert state() == before


@pytest.mark.parametrize("header", ["origin", "referer"])
def test_post_with_a_csrf_token_from_another_site_is_rejected(watches, header: str) -> None:
    """Over https, because only there does Django check the referer of a request without an origin."""
    root = visitor("root", superuser=True, checks_csrf=True)
    root.get("/admin/password_change/", secure=True)
    form = {"post": "yes", "csrfmiddlewaretoken": root.cookies["csrftoken"].value}
    url = f"/admin/deliveries_app/apprepository/force-resync/?ids={watches[0].pk}"
    before = state()
    response = root.post(url, form, secure=True, headers={header: "https://evil.example"})
    assert response.status_code == 403
    assert "This form has expired" in response.text
    assert state() == before
    assert root.post(url, form, secure=True, headers={header: "https://testserver"}).status_code == 302
    assert state() != before


@by_group
def test_only_post_changes_anything(
    group: str, watches, operation: BulkOperation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests have all parameters that a page needs to act. Lists and exports refuse these, so they get none.

    What a page looks like does not depend on the method, so only GET renders its template.
    """
    root = visitor("root", superuser=True)
    watch = watches[0]
    fail(watch, RootCause.SERVER_ERROR)
    [delivered] = add_deliveries(watch, ["readme.md"])
    selected = {"app": watch.app_id, "repository": watch.repository_id, "delivery": delivered.pk}
    before = state()
    for route in GROUPS[group]:
        url = address(route, watch, operation)
        model = route.split("/")[3] if route.count("/") > 3 else ""
        if not route.endswith("/export/") and not is_list(route):
            url += f"?post=yes&confirm=yes&ids={selected.get(model, watch.pk)}"
        response = root.get(url)
        assert response.status_code < 500, url
        assert response.status_code != 400, url
        assert response.status_code == 200 or route not in CONFIRMATIONS, url
        with monkeypatch.context() as patch:
            patch.setattr(SimpleTemplateResponse, "rendered_content", "")
            for method in OTHER_METHODS:
                assert root.generic(method, url).status_code < 500, (method, url)
    assert state() == before


def is_list(route: str) -> bool:
    return route.count("/") == 4 and route.split("/")[2] in {"auth", "deliveries_app", "repositories_app"}


IDS = ["-1", "999999999", "9" * 30, "x", "%00", "%ff", "..%2f..", "1_2F2"]


@pytest.mark.parametrize("object_id", IDS, ids=lambda name: name[:14])
def test_invalid_id_is_never_a_server_error(root: Client, watches, object_id: str) -> None:
    before, reached = state(), set()
    for route in ROUTES:
        url = re.sub(r"<[^>]+>", object_id, route)
        if url != route and view_of(url) not in reached:
            reached.add(view_of(url))
            for response in (root.get(url), root.post(url, {"post": "yes"})):
                assert response.status_code in {302, 400, 401, 403, 404, 405, 410}, (url, response.status_code)
    assert state() == before


def view_of(url: str) -> str:
    """Return the route that a URL leads to. Where an id has to be a number, others lead to the page of unknown URLs."""
    try:
        return resolve(unquote(url)).route
    except Resolver404:
        return ""


def test_saving_as_new_is_refused(root: Client, watches, operation: BulkOperation) -> None:
    """Django copies the row, or fails to show the form's errors, although no page has the button."""
    Group.objects.get_or_create(pk=1, defaults={"name": "Auditors"})
    before = state()
    statuses = {
        root.post(address(route, watches[0], operation), {"_saveasnew": "1"}).status_code
        for route in ROUTES
        if route.endswith("/change/")
    }
    assert 400 in statuses
    assert statuses <= {200, 302, 400, 405}  # read-only pages ignore it
    assert state() == before


# `q=%00` stands for what the middleware refuses on every page, see test_invalid_queries.py.
QUERIES = ["ids=x", "ids=" + "9" * 30, "p=x", "q=%00", "next=//evil.example", "next=javascript:x",
    "app__client_auth_key__startswith=a", "_to_field=client_auth_key", "e=1", "_popup=1",
    "repository__watches__github_token__contains=g"]  # fmt: skip


# Only lists and exports refuse unknown parameters. Other pages get several at once, if none keeps them from reading the rest.
TOGETHER = ["ids=x&_popup=1", "ids=" + "9" * 30, "_to_field=client_auth_key",
    *(f"{one}&p=x&e=1&{QUERIES[6]}&{QUERIES[-1]}" for one in ("next=//evil.example", "next=javascript:x"))]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=lambda name: name[:40])
def test_invalid_query_of_a_list_is_no_server_error_or_redirect(
    root: Client, watches, operation: BulkOperation, query: str
) -> None:
    check_queries(root, {address(route, watches[0], operation) for route in ROUTES if refuses_unknown(route)}, query)


@pytest.mark.parametrize("query", TOGETHER, ids=lambda name: name[:40])
def test_invalid_query_of_another_page_is_neither_a_server_error_nor_a_redirect(
    root: Client, watches, operation: BulkOperation, query: str
) -> None:
    others = set(ROUTES) - STAFF_PAGES - PUBLIC_PAGES
    others = {route for route in others if not route.endswith(("/history/", "/delete/", "object_id>/"))}
    others = {route for route in others if not refuses_unknown(route)}
    answers = check_queries(root, {address(route, watches[0], operation) for route in others}, query)
    assert "next=" not in query or 400 not in answers


def refuses_unknown(route: str) -> bool:
    return is_list(route) or route.endswith("/export/")


def check_queries(root: Client, urls: set[str], query: str) -> set[int]:
    """GET each URL with the query. Return the status codes."""
    before, answers = state(), set()
    assert len(urls) > 10
    for url in urls:
        response = root.get(f"{url}?{query}")
        assert response.status_code < 500, url
        answers.add(response.status_code)
        assert "evil.example" not in response.headers.get("Location", "")
        if "next=" in query and response.status_code == 200 and not response.streaming:
            assert not re.search(r'href="//evil\.example|href="javascript:', response.text), url
    assert state() == before
    return answers
