"""Queries that would make the database fail get a 400 everywhere below /admin/."""

import json

import pytest
from django.test import Client

from deliveries_app.models import App
from tests.hostile.conftest import visitor

BIG, MANY_WORDS = "9" * 30, "+".join(["a"] * 1500)
APPS, WATCHES = "/admin/deliveries_app/app/", "/admin/deliveries_app/apprepository/"
INVALID = [
    f"{WATCHES}?q=%00",
    f"{WATCHES}?o=%00",
    f"{WATCHES}?p={BIG}",
    f"{WATCHES}?state=%00&state=failed",  # all values are checked, not just the last
    f"{WATCHES}force-resync/?all=1&state=%00",
    f"{WATCHES}remove/?all=1&state=%00",
    f"{WATCHES}force-resync/?all=1&app={'9' * 5000}",
    f"{WATCHES}force-resync/?all=1&app={BIG}",
    f"{WATCHES}force-resync/?all=1&q={MANY_WORDS}",
    f"{APPS}?id__in={BIG},{BIG}",
    f"{APPS}?name__regex=(",
    f"{APPS}?name__iregex=(a%2B)%2B$",
    f"{APPS}?q={MANY_WORDS}",
    f"{APPS}remove/?all=1&name=%00",
    "/admin/deliveries_app/syncrun/?outcome__exact=%00&outcome__exact=failed",
    "/admin/auth/user/?username=%00",
    "/admin/auth/user/?na%00me=x",
    f"/admin/auth/user/?groups__id__in={BIG},{BIG}",
    f"{APPS}?created_at__year=99999999",
    f"{APPS}?id__range=1",
    f"{WATCHES}?created_at__year__gte=99999999",
    f"{WATCHES}force-resync/?all=1&created_at__date__year=99999999",
    "/admin/deliveries_app/delivery/?updated_at__year=99999999",
    "/admin/deliveries_app/failedsync/?created_at__year=99999999",
    "/admin/deliveries_app/syncrun/?created_at__year=99999999",
    "/admin/repositories_app/repository/?created_at__week=99999999",
    "/admin/auth/user/?date_joined__year=99999999",
    "/admin/auth/user/?last_login=9999-12-31T23:59:59-23:59",
    "/admin/auth/user/?password__startswith=pbkdf2",
    "/admin/auth/group/?id__range=1",
]


@pytest.mark.parametrize("url", INVALID, ids=lambda url: url[:70])
def test_invalid_query_of_a_page(root: Client, watches, url: str) -> None:
    response = root.get(url)
    assert response.status_code == 400
    assert "Bad request" in response.text


def test_invalid_query_of_a_form(root: Client, watches) -> None:
    form = {"action": "resync_all_for_app", "_selected_action": watches[0].app_id}
    assert root.post(f"{APPS}?q=%00", form).status_code == 400
    assert root.post(f"{APPS}?q=x", form).status_code == 302


@pytest.mark.parametrize(
    "query", ["search=%00", f"search={MANY_WORDS}", "status=%00&status=failed"], ids=lambda q: q[:20]
)
def test_invalid_query_of_the_json_api(root: Client, watches, query: str) -> None:
    response = root.get(f"/admin/api/repositories?{query}")
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid query: fix its parameters"


def test_form_instead_of_json(watches) -> None:
    """With CSRF checks, as in a browser: these read the form, so no body is left to read."""
    client = visitor("root", superuser=True, checks_csrf=True)
    client.get("/admin/password_change/")
    token = {"x-csrftoken": client.cookies["csrftoken"].value}
    response = client.post("/admin/api/resync", {"app_id": "x"}, headers=token)
    assert (response.status_code, response.json()["error"]) == (400, "The body must be JSON")


@pytest.mark.parametrize(
    "url",
    [
        f"{WATCHES}?state=failed&circuit=open&q=x&o=1&p=1",
        f"{APPS}?paused__exact=1",
        "/admin/repositories_app/repository/?visibility=public&circuit=open",
        "/admin/deliveries_app/failedsync/?app=1&cause=app&state=failed&operation=x",
        "/admin/auth/user/?is_staff__exact=1&is_superuser__exact=0&is_active__exact=1&groups__id__exact=1&groups__isnull=1",
    ],
)
def test_filters_of_the_lists_work(root: Client, watches, url: str) -> None:
    assert root.get(url).status_code == 200


def test_long_number_is_valid_search_text(root: Client, watches) -> None:
    App.objects.filter(pk=watches[0].app_id).update(name=f"Portal {BIG}")
    assert f"Portal {BIG}" in root.get(f"{APPS}?q={BIG}").text


@pytest.mark.parametrize("selected", ["x", "\0", "-1", "1,2"])
@pytest.mark.parametrize(
    ("page", "action"),
    [
        (APPS, "resync_all_for_app"),
        (APPS, "delete_selected"),
        ("/admin/repositories_app/repository/", "reset_circuits"),
    ],
)
def test_action_on_an_invalid_id(root: Client, watches, page: str, action: str, selected: str) -> None:
    assert root.post(page, {"action": action, "_selected_action": ["1", selected], "post": "yes"}).status_code == 400
    assert App.objects.filter(ended_at=None).count() == 2


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("[" * 100_000, 400, "The body must be JSON"),
        ('{"a":' * 20_000, 400, "The body must be JSON"),
        (json.dumps({"app_id": "x" * 2_000_000}), 400, "The body must have at most 1,048,576 bytes"),
        (json.dumps({"app_id": "\ud800", "repository_id": "x"}), 404, "App-repository link not found"),
        (json.dumps({"app_id": "x", "repository_id": "\0"}), 404, "App-repository link not found"),
    ],
    ids=["deep list", "deep object", "large", "surrogate", "NUL"],
)
def test_invalid_body_of_the_json_api(root: Client, watches, body: str, status: int, message: str) -> None:
    response = root.post("/admin/api/resync", body, content_type="application/json")
    assert (response.status_code, response.json()["error"]) == (status, message)


@pytest.mark.parametrize("key", ["abc", "9" * 30, "-1", "1,2"])
def test_invalid_app_of_a_new_watch(root: Client, watches, key: str) -> None:
    page = f"{WATCHES}add/"
    assert root.get(page, {"app": key}).status_code in {200, 400}
    answer = root.post(page, {"app": key, "github_url": "https://github.com/acme/new"})
    assert answer.status_code == 200
    assert answer.context["form"].errors.keys() == {"app"}


@pytest.mark.parametrize(
    "page",
    [
        f"{WATCHES}?q=", f"{APPS}?q=", f"{WATCHES}?app_name=", "/admin/deliveries_app/failedsync/?q=", "/admin/search/?q=",
        "/admin/live/app/{app}/repository-names/?repository=",
        "/admin/live/app-names/?app_name=", "/admin/api/repositories?search=",
        "/admin/autocomplete/?app_label=deliveries_app&model_name=apprepository&field_name=app&term=",
    ],
)  # fmt: skip
def test_search_for_a_long_text(root: Client, watches, page: str) -> None:
    page = page.format(app=watches[0].app_id)
    assert root.get(f"{page}{'a' * 60_000}").status_code == 400
    assert root.get(f"{page}{'a' * 4_096}").status_code == 200


def test_long_selections_and_pages_to_return_to_are_valid(root: Client, watches) -> None:
    ids = ",".join(str(number) for number in {watches[0].pk, *range(9_999)})
    assert root.get(f"{WATCHES}force-resync/?ids={ids}&next={WATCHES}%3Fids%3D{ids}").status_code == 200
