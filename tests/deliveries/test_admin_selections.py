"""Selections given in the URL. Invalid ones get a message, never a traceback."""

import pytest
from django.test import Client

from deliveries_app.models import AppRepository
from tests.support.staff import VIEWS, make_app, make_watch, staff

LIST = "/admin/deliveries_app/apprepository/"
CONFIRM = f"{LIST}force-resync/"


def generations() -> list[int]:
    return list(AppRepository.objects.order_by("pk").values_list("generation", flat=True))


@pytest.fixture
def watches(db) -> list[AppRepository]:
    portal = make_app("Portal")
    return [make_watch(portal, "docs"), make_watch(portal, "site")]


@pytest.fixture
def operator(db) -> Client:
    return staff("anna", *(f"view_{model}" for model in VIEWS), "resync_apprepository")


def test_select_all_from_a_later_page_selects_all_pages(operator: Client, watches) -> None:
    assert "2 repositories for 1 app" in operator.get(f"{CONFIRM}?all=1&p=7").text


@pytest.mark.parametrize("query", ["app__pk=x", "created_at__gte=yesterday", "status__exact=failed&o=99.x"])
def test_invalid_filter_selects_nothing(operator: Client, watches, query: str) -> None:
    answer = operator.post(f"{CONFIRM}?all=1&{query}", {"post": "yes"}, follow=True)
    assert answer.status_code in {200, 400}
    assert generations() == [1, 1]


def test_unknown_filter_is_refused(operator: Client, watches) -> None:
    assert operator.get(f"{CONFIRM}?all=1&app__client_auth_key__startswith=k").status_code == 400


def test_only_repository_of_an_app_is_confirmed_as_one(operator: Client, db) -> None:
    app = make_app("Solo")
    make_watch(app, "docs")
    url = f"/admin/deliveries_app/app/force-resync/?ids={app.pk}"
    assert "This will re-sync acme/docs and re-send ALL files to Solo." in operator.get(url).text
    assert "Re-sync of 1 repository requested." in operator.post(url, {"post": "yes"}, follow=True).text


def test_ended_watch_is_neither_listed_nor_selected(operator: Client, watches) -> None:
    from django.utils import timezone

    AppRepository.objects.filter(pk=watches[0].pk).update(ended_at=timezone.now())
    assert "acme/docs" not in operator.get(LIST).text
    operator.post(f"{CONFIRM}?ids={watches[0].pk},{watches[1].pk}", {"post": "yes"})
    assert generations() == [1, 2]
