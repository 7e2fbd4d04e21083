"""What no database should be asked is a 400 of its own, wherever below /admin/ it is asked."""

import json

import pytest
from django.test import Client

from deliveries_app.models import App
from tests.hostile.conftest import visitor

BIG, WORDS = "9" * 30, "+".join(["a"] * 1500)
APPS, WATCHES = "/admin/deliveries_app/app/", "/admin/deliveries_app/apprepository/"
UNANSWERABLE = [
    f"{WATCHES}?status__exact=%00&status__exact=failed",  # every value counts, not the last alone
    f"{WATCHES}force-resync/?all=1&status__exact=%00",
    f"{WATCHES}remove/?all=1&status__exact=%00",
    f"{WATCHES}force-resync/?all=1&app={'9' * 5000}",
    f"{WATCHES}force-resync/?all=1&app={BIG}",
    f"{WATCHES}force-resync/?all=1&q={WORDS}",
    f"{APPS}?id__in={BIG},{BIG}",
    f"{APPS}?name__regex=(",
    f"{APPS}?name__iregex=(a%2B)%2B$",
    f"{APPS}?q={WORDS}",
    f"{APPS}remove/?all=1&name=%00",
    "/admin/deliveries_app/syncrun/?outcome__exact=%00&outcome__exact=failed",
    "/admin/axes/accessattempt/?username=%00",
    "/admin/auth/user/?username=%00",
    "/admin/auth/user/?na%00me=x",
]


@pytest.mark.parametrize("url", UNANSWERABLE, ids=lambda url: url[:70])
def test_a_page_that_is_asked_for_what_cannot_be_found(root: Client, watches, url: str) -> None:
    answer = root.get(url)
    assert answer.status_code == 400
    assert "This request was not understood" in answer.text


@pytest.mark.parametrize("query", ["search=%00", f"search={WORDS}", "status=%00&status=failed"], ids=lambda q: q[:20])
def test_the_json_says_so_in_its_own_shape(root: Client, watches, query: str) -> None:
    answer = root.get(f"/admin/api/repositories?{query}")
    assert answer.status_code == 400
    assert answer.json() == {"error": "Nothing can be found by this query: correct its parameters"}


def test_a_form_in_the_place_of_json(watches) -> None:
    """With its CSRF token checked, as for a browser: that reads the form, and leaves no body to read."""
    client = visitor("root", superuser=True, checks_csrf=True)
    client.get("/admin/password_change/")
    token = {"x-csrftoken": client.cookies["csrftoken"].value}
    answer = client.post("/admin/api/resync", {"app_id": "x"}, headers=token)
    assert (answer.status_code, answer.json()) == (400, {"error": "The body must be JSON"})


def test_long_numbers_are_text_where_text_is_searched(root: Client, watches) -> None:
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
def test_an_action_on_what_is_no_row(root: Client, watches, page: str, action: str, selected: str) -> None:
    assert root.post(page, {"action": action, "_selected_action": ["1", selected], "post": "yes"}).status_code == 400
    assert App.objects.filter(ended_at=None).count() == 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("[" * 100_000, 400, "The body must be JSON"),
        ('{"a":' * 20_000, 400, "The body must be JSON"),
        (json.dumps({"app_id": "x" * 2_000_000}), 400, "The body must have at most 1,048,576 bytes"),
        (json.dumps({"app_id": "\ud800", "repository_id": "x"}), 404, "App-repository link not found"),
        (json.dumps({"app_id": "x", "repository_id": "\0"}), 404, "App-repository link not found"),
    ],
    ids=["deep list", "deep object", "large", "surrogate", "NUL"],
)
def test_a_body_that_names_no_watch(root: Client, watches, body: str, status: int, words: str) -> None:
    answer = root.post("/admin/api/resync", body, content_type="application/json")
    assert (answer.status_code, answer.json()) == (status, {"error": words})
