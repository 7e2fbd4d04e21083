"""Every address below /admin/, read off the URL configuration: who may not, does not, by whichever method."""

import json
import re
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.http import HttpResponse
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from tests.hostile.conftest import visitor
from tests.support.staff import VIEWS

FOR_ALL_STAFF = {"/admin/", "/admin/logout/", "/admin/password_change/", "/admin/password_change/done/"}
FOR_ALL_STAFF |= {"/admin/jsi18n/"}
FOR_ANYBODY = {"/admin/login/"}
METHODS = ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "X" * 1000]
IGNORED = {"session", "logentry", "accessattempt", "accesslog", "accessfailurelog", "contenttype", "permission"}


def routes(resolver: URLResolver, before: str = "/") -> Iterator[str]:
    """Every route as it is written, such as `/admin/live/<int:pk>/cancel/`; regular expressions are left out, of which
    the site has two: its catch-all and the index of one app."""
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from routes(entry, route)
        elif isinstance(entry, URLPattern) and not re.search(r"[\^$(]", route):
            yield route


ROUTES = sorted({route for route in routes(get_resolver()) if route.startswith("/admin/")})


def address(route: str, watch: AppRepository, operation: BulkOperation) -> str:
    """The route with the ids of things that there are."""
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
    made = BulkOperation.objects.create(title="Everything", total=1, requested_by="olga")
    SyncRun.objects.create(watch=watches[0], operation=made, generation=1, reason="resync", requested_by="olga")
    return made


def state() -> str:
    """Everything in the database but sessions and what is written about attempts."""
    models = [model for model in apps.get_models() if model._meta.model_name not in IGNORED and model._meta.managed]
    rows = {model._meta.label: list(model._default_manager.order_by("pk").values()) for model in models}
    for user in rows["auth.User"]:
        del user["last_login"]
    return json.dumps(rows, default=str)


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
    "patterns": "*",
    "ignore_patterns": "*",
    "overlap": "0",
    "client_auth_key": "a-key-of-the-forger",
    "key": "new",
}


def test_the_walk_finds_what_it_should() -> None:
    assert len(ROUTES) > 60
    known = {"/admin/deliveries_app/app/<path:object_id>/delete/", "/admin/api/resync", "/admin/live/<int:pk>/cancel/"}
    assert known <= set(ROUTES)


def group_of(route: str) -> str:
    parts = route.split("/")[2:]
    return "/".join(parts[:2]) if parts[0].endswith("_app") or parts[0] in {"auth", "axes"} else parts[0] or "index"


GROUPS = {group: [route for route in ROUTES if group_of(route) == group] for group in map(group_of, ROUTES)}
by_group = pytest.mark.parametrize("group", GROUPS)


@by_group
def test_staff_without_the_permission_changes_nothing(group: str, watches, operation: BulkOperation) -> None:
    nobody, viewer = visitor("norbert"), visitor("victor", *(f"view_{model}" for model in VIEWS))
    before = state()
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        for data in ({}, FORGED):
            refused, seen = nobody.post(url, data), viewer.post(url, data)
            assert seen.status_code < 500, url
            if route not in FOR_ALL_STAFF | FOR_ANYBODY and not leads_on(refused):
                assert refused.status_code in {400, 403, 404, 405}, url
        assert state() == before, url
    assert not LogEntry.objects.exists()


def leads_on(answer: HttpResponse) -> bool:
    """Django's redirects from `<id>/` to `<id>/change/`, and to the index where there is no such row."""
    return re.fullmatch(r"/admin/(\w+/\w+/\d+/change/)?", answer.headers.get("Location", "")) is not None


@by_group
def test_nobody_signed_in_changes_nothing(group: str, watches, operation: BulkOperation) -> None:
    before, nobody = state(), Client(raise_request_exception=False)
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        answer = nobody.post(url, FORGED)
        assert state() == before, url
        if answer.status_code == 302:
            assert answer.headers["Location"].startswith("/admin/login/") or route == "/admin/logout/", url
        elif route in FOR_ANYBODY:
            assert "errornote" in answer.text
        else:
            assert answer.status_code in {401, 403, 405}, url


@by_group
def test_a_post_from_another_site_is_refused_whoever_is_signed_in(
    group: str, watches, operation: BulkOperation
) -> None:
    root = visitor("root", superuser=True, checks_csrf=True)
    before = state()
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        for headers in ({}, {"origin": "https://evil.example"}, {"referer": "https://evil.example/"}):
            answer = root.post(url, FORGED, headers=headers)
            assert answer.status_code in {403, 405}, url
            assert answer.status_code == 405 or re.search("CSRF|This form is too old", answer.text), url
        assert state() == before, url


@by_group
def test_nothing_but_a_post_changes_anything(group: str, watches, operation: BulkOperation) -> None:
    root = visitor("root", superuser=True)
    before = state()
    for route in GROUPS[group]:
        url = address(route, watches[0], operation)
        for method in METHODS:
            answer = root.generic(method, f"{url}?post=yes&ids=1&all=1&action=force_resync")
            assert answer.status_code < 500, (method, url)
        assert state() == before, url


IDS = ["0", "-1", "999999999", "9" * 30, "x", "%00", "%ff", "1%20or%201=1", "..%2f..", "_5F", "1_2F2", "x" * 500]


@pytest.mark.parametrize("object_id", IDS, ids=lambda name: name[:14])
def test_an_id_that_is_none_is_never_an_error_of_ours(root: Client, watches, object_id: str) -> None:
    before = state()
    for route in ROUTES:
        if "<" in route:
            url = re.sub(r"<[^>]+>", object_id, route)
            for answer in (root.get(url), root.post(url, {"post": "yes"})):
                assert answer.status_code in {302, 400, 401, 403, 404, 405}, (url, answer.status_code)
    assert state() == before


QUERIES = ["ids=x", "ids=%00", "ids=" + "9" * 30, "ids=" + ",".join("1" * 5000), "p=x", "p=-1", "p=" + "9" * 30, "q=%00",
    "q=%ff", "q=" + "x" * 500, "o=99", "o=%00", "next=https://evil.example", "next=//evil.example", "next=javascript:x",
    "app=%00", "app=" + "9" * 30, "status=%00", "app__client_auth_key__startswith=a", "_to_field=client_auth_key", "e=1",
    "_popup=1", "repository__watches__github_token__contains=g"]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=lambda name: name[:40])
def test_a_query_that_is_none_is_never_an_error_of_ours_and_leads_nowhere_else(
    root: Client, watches, operation: BulkOperation, query: str
) -> None:
    before = state()
    for route in ROUTES:
        if route in FOR_ALL_STAFF | FOR_ANYBODY or route.endswith(("/history/", "/delete/", "object_id>/")):
            continue
        answer = root.get(f"{address(route, watches[0], operation)}?{query}")
        assert answer.status_code < 500, route
        assert "evil.example" not in answer.headers.get("Location", "")
        if "next=" in query and answer.status_code == 200 and not answer.streaming:
            assert not re.search(r'href="(https:)?//evil\.example|href="javascript:', answer.text), route
    assert state() == before
