"""Pausing all syncing: the confirmation page, the banner on every page, and what waits."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.models import AppRepository, Delivery, SyncPause, SyncRun
from tests.support.audit import by_users, messages
from tests.support.staff import staff

PAGE = "/admin/deliveries_app/queue/"
LIVE = "/admin/live/queue/"
WATCHES = "/admin/deliveries_app/apprepository/"
BANNER = "<strong>All syncing is paused.</strong> Paused by anna"
SEES = ("view_queue", "view_apprepository", "view_app")


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", *SEES, "control_queue", "resync_apprepository")


@pytest.fixture
def paused(db) -> SyncPause:
    return SyncPause.objects.create(paused_by="anna")


def test_page_explains_the_pause_and_only_post_pauses(operator: Client, watches) -> None:
    page = operator.get(f"{PAGE}pause/").text
    for expected in ("nothing is sent to any app", "are held until then", "are not sent again", "Cancel"):
        assert expected in page
    assert "running sync" not in page  # nothing runs
    assert not SyncPause.objects.exists()
    answer = operator.post(f"{PAGE}pause/", {"post": "yes"}, follow=True)
    assert answer.redirect_chain == [(PAGE, 302)]
    assert "All syncing was paused by olga." in answer.text
    assert SyncPause.objects.get().paused_by == "olga"
    assert messages(by_users()) == ["Paused all syncing"]


@pytest.mark.parametrize(("count", "expected"), [(1, "1 running sync stops"), (2, "2 running syncs stop")])
def test_page_counts_running_syncs(operator: Client, watches, count: int, expected: str) -> None:
    chosen = [watch.pk for watch in watches[:count]]
    soon = timezone.now() + timedelta(seconds=20)
    AppRepository.objects.filter(pk__in=chosen).update(lease_until=soon)
    assert expected in operator.get(f"{PAGE}pause/").text


def test_second_pause_names_who_paused_first(operator: Client, paused: SyncPause) -> None:
    assert "All syncing was paused by anna." in operator.post(f"{PAGE}pause/", {"post": "yes"}, follow=True).text
    assert SyncPause.objects.get().paused_by == "anna"


def every_page(watch: AppRepository) -> list[str]:
    return [
        "/admin/",
        PAGE,
        WATCHES,
        f"{WATCHES}{watch.pk}/change/",
        f"{WATCHES}force-resync/?ids={watch.pk}",
        f"/admin/deliveries_app/app/{watch.app_id}/change/",
        "/admin/password_change/",
    ]


def test_banner_is_on_every_page_and_resumes(operator: Client, watches, paused: SyncPause) -> None:
    for url in every_page(watches[0]):
        page = operator.get(url).text
        assert BANNER in page, url
        assert f'action="{PAGE}resume/?next=' in page, url
    back = f"{WATCHES}{watches[0].pk}/change/"
    answer = operator.post(f"{PAGE}resume/?next={back}", follow=True)
    assert answer.redirect_chain == [(back, 302)]
    assert "Syncing was resumed." in answer.text
    assert not SyncPause.objects.exists()
    for url in every_page(watches[0]):
        assert "All syncing is paused" not in operator.get(url).text, url
    assert "Syncing was not paused" in operator.post(f"{PAGE}resume/", follow=True).text


def test_banner_without_permission_has_no_button(watches, paused: SyncPause) -> None:
    viewer = staff("victor", *SEES)
    for url in (PAGE, WATCHES):
        page = viewer.get(url).text
        assert BANNER in page
        assert "/resume/" not in page
    assert BANNER in staff("norbert").get("/admin/").text


def test_anonymous_pages_neither_show_nor_query_the_pause(client: Client, paused: SyncPause) -> None:
    with CaptureQueriesContext(connection) as captured:
        page = client.get("/accounts/login/").text
    assert "paused" not in page
    assert not [query for query in captured.captured_queries if "syncpause" in query["sql"]]


def test_banner_takes_one_query(operator: Client, watches, paused: SyncPause) -> None:
    with CaptureQueriesContext(connection) as captured:
        operator.get(f"{WATCHES}{watches[0].pk}/change/")
    rows = [query for query in captured.captured_queries if 'FROM "deliveries_app_syncpause" ORDER BY' in query["sql"]]
    assert len(rows) == 1


def test_queue_page_polls_the_pause(operator: Client, db) -> None:
    assert '<div id="sync-pause">' in operator.get(PAGE).text
    before = operator.get(LIVE).text
    assert '<div id="sync-pause" hx-swap-oob="true">' in before
    assert "Pause all syncing" in before
    SyncPause.objects.create(paused_by="anna")
    after = operator.get(LIVE, headers={"HX-Current-URL": f"http://testserver{PAGE}"}).text
    assert BANNER in after
    assert f'action="{PAGE}resume/?next={PAGE}"' in after
    assert "Pause all syncing" not in after


def test_live_pages_poll_the_pause(operator: Client, watches, paused: SyncPause) -> None:
    delivery = Delivery.objects.create(
        watch=watches[0],
        path="a.md",
        kind="create",
        size=1,
        sequence=1,
        generation=1,
        acknowledged=True,
        updated_at=timezone.now(),
    )
    operator = staff("otto", *SEES, "view_delivery", "control_queue")
    live = {
        "/admin/": "overview/",
        "/admin/deliveries_app/failedsync/": "failed/",
        f"/admin/deliveries_app/app/{watches[0].app_id}/change/": f"app/{watches[0].app_id}/",
        f"/admin/deliveries_app/delivery/{delivery.pk}/change/": f"delivery/{delivery.pk}/",
        f"{WATCHES}{watches[0].pk}/change/": f"watch/{watches[0].pk}/",
    }
    for page, fragment in live.items():
        answer = operator.get(f"/admin/live/{fragment}", headers={"HX-Current-URL": f"http://testserver{page}"}).text
        assert answer.count('<div id="sync-pause" hx-swap-oob="true">') == 1, page
        assert BANNER in answer, page
        assert f'action="{PAGE}resume/?next={page}"' in answer, page


def test_resync_during_a_pause_is_recorded_and_waits(operator: Client, watches, paused: SyncPause) -> None:
    url = f"{WATCHES}force-resync/?ids={watches[0].pk}"
    assert "Nothing is sent until it is resumed." in operator.get(url).text
    operator.post(url, {"post": "yes"})
    assert SyncRun.objects.get().outcome == ""
    assert "Paused: all syncing is paused" in operator.get(PAGE).text


def test_names_are_escaped(admin: Client) -> None:
    SyncPause.objects.create(paused_by="<b>anna</b>")
    assert "&lt;b&gt;anna&lt;/b&gt;" in admin.get("/admin/").text
