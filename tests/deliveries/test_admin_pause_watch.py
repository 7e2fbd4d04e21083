"""Pause and resume repositories in the admin: the buttons of the page, and the actions of the list."""

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.test import Client
from django.utils import timezone

from deliveries_app.models import App, AppRepository
from tests.support.staff import make_app, make_watch, staff

LIST = "/admin/deliveries_app/apprepository/"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", "view_apprepository", "change_apprepository", "resync_apprepository", "retry_apprepository")


@pytest.fixture
def watches(db) -> list[AppRepository]:
    portal = make_app("Portal")
    return [make_watch(portal, name) for name in ("docs", "site", "wiki")]


def paused() -> list[str]:
    return [watch.repository.name for watch in AppRepository.objects.exclude(paused_at=None).order_by("pk")]


def test_buttons_of_the_page(operator: Client, watches) -> None:
    page = f"{LIST}{watches[0].pk}/"
    assert f'action="{page}pause/"' in operator.get(f"{page}change/").text
    answer = operator.post(f"{page}pause/", follow=True)
    assert "acme/docs → Portal is paused." in answer.text
    assert "Paused by olga <time" in answer.text
    assert "the repository is paused" in answer.text
    assert f'action="{page}resume/"' in answer.text
    assert paused() == ["docs"]
    App.objects.update(paused=True)
    assert "Its app is still paused." in operator.post(f"{page}resume/", follow=True).text
    assert paused() == []


def test_actions_of_the_list(operator: Client, watches) -> None:
    chosen = {ACTION_CHECKBOX_NAME: [watch.pk for watch in watches[:2]]}
    assert "Paused 2 repositories." in operator.post(LIST, {"action": "pause", **chosen}, follow=True).text
    assert paused() == ["docs", "site"]
    rows = operator.get(f"{LIST}?state=paused").context["cl"].result_list
    assert [row.repository.name for row in rows] == ["docs", "site"]
    everything = {"action": "resume", ACTION_CHECKBOX_NAME: [watches[2].pk], "select_across": "1"}
    assert "Resumed 2 repositories." in operator.post(LIST, everything, follow=True).text
    assert paused() == []


def test_viewer_has_no_buttons(watches) -> None:
    viewer, page = staff("vera", "view_apprepository"), f"{LIST}{watches[0].pk}/"
    assert "pause/" not in viewer.get(f"{page}change/").text
    assert viewer.post(f"{page}pause/").status_code == 403
    assert '<option value="pause"' not in viewer.get(LIST).text
    assert paused() == []


def test_confirmation_says_what_waits(operator: Client, watches) -> None:
    AppRepository.objects.filter(pk=watches[0].pk).update(paused_at=timezone.now())
    ids = ",".join(str(watch.pk) for watch in watches)
    assert (
        "1 repository is paused, or its app is. Nothing is sent for it until it is resumed."
        in operator.get(f"{LIST}force-resync/?ids={ids}").text
    )
