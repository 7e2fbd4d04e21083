"""Removing apps and watches: what the confirmation shows, and what is removed."""

import re
from datetime import timedelta
from urllib.parse import quote

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.html import escape

from deliveries_app.models import App, AppRepository, Delivery
from deliveries_app.reports import impact
from deliveries_app.services import watching
from tests.support.admin_pages import form_of
from tests.support.audit import by_users
from tests.support.staff import make_app, make_watch, staff

APPS = "/admin/deliveries_app/app/"
WATCHES = "/admin/deliveries_app/apprepository/"


def deliver(watch: AppRepository, count: int) -> None:
    fields = {"mode": "100644", "kind": "create", "sha": "0" * 64, "size": 1, "sequence": 1, "generation": 1}
    Delivery.objects.bulk_create(
        Delivery(watch=watch, path=f"{number}.txt", acknowledged=True, updated_at=timezone.now(), **fields)
        for number in range(count)
    )


def test_delete_page_of_an_app_counts_what_is_removed(admin: Client, watches: list[AppRepository]) -> None:
    deliver(watches[0], 7)
    AppRepository.objects.filter(pk=watches[0].pk).update(lease_until=Now() + timedelta(seconds=20))
    page = admin.get(f"{APPS}{watches[0].app_id}/delete/").text
    assert "This deletes Portal." in page
    assert "Docora will stop watching 2 repositories" in page
    assert "7 delivery records will be deleted" in page
    assert "1 git repository that no other app watches" in page  # Search watches acme/docs too
    assert "1 repository is syncing right now" in page
    assert "The client will keep the files it has" in page


def test_unwatch_page_counts_what_is_removed(admin: Client, watches: list[AppRepository]) -> None:
    page = admin.get(f"{WATCHES}{watches[0].pk}/delete/").text
    assert "stop watching acme/docs for Portal. Nothing more will be sent" in page
    assert "No git repositories will be deleted." in page
    assert "right now" not in page
    assert "acme/site" in admin.get(f"{WATCHES}{watches[1].pk}/delete/").text


def test_page_for_several_apps_names_the_first_ten(admin: Client, db) -> None:
    apps = [make_app(f"App {number:02}") for number in range(12)]
    page = admin.get(f"{APPS}remove/?ids={apps[0].pk},{apps[1].pk}").text
    assert "This deletes App 00 and App 01. Docora stops sending them notifications" in page
    page = admin.get(f"{APPS}remove/?ids={','.join(str(app.pk) for app in apps)}").text
    assert "This deletes App 00, App 01," in page
    assert "App 09 and 2 more apps." in page


def test_large_tables_are_not_counted_exactly(admin: Client, watches, monkeypatch) -> None:
    monkeypatch.setattr(impact, "COUNTED_RECORDS", 5)
    deliver(watches[0], 7)
    assert "About 100 delivery records" in admin.get(f"{WATCHES}{watches[0].pk}/delete/").text


def test_files_of_an_unfinished_sync_are_those_that_may_be_at_the_client(admin: Client, watches, monkeypatch) -> None:
    """Its tree has 100 files, but only 7 were announced. With a base, all that didn't fail were delivered."""
    monkeypatch.setattr(impact, "COUNTED_RECORDS", 9)
    deliver(watches[0], 7)

    def files(watch: AppRepository) -> str:
        page = admin.get(f"{WATCHES}{watch.pk}/delete/").text
        [cell] = re.findall(r'<td class="numeric">(.*?)<span', page)
        return cell

    assert [files(watch) for watch in watches[:2]] == ["7 / 100", "0 / 100"]
    deliver(watches[1], 10)
    assert files(watches[1]) == "more than 9 / 100"
    AppRepository.objects.filter(pk=watches[0].pk).update(base_commit="c0ffee", files_failing=3)
    assert files(watches[0]) == "97 / 100"
    AppRepository.objects.filter(pk=watches[0].pk).update(files_failing=0)
    assert files(watches[0]) == "100"


def test_query_count_is_constant(admin: Client, django_assert_max_num_queries) -> None:
    app = make_app("Portal")
    for number in range(30):
        make_watch(app, f"many-{number}")
    with django_assert_max_num_queries(14):
        assert "and 20 more" in admin.get(f"{APPS}{app.pk}/delete/").text


def test_deletion_is_in_the_audit_log(admin: Client, watches: list[AppRepository]) -> None:
    page = admin.post(f"{WATCHES}{watches[0].pk}/delete/", {"post": "yes"}, follow=True)
    assert page.redirect_chain == [(WATCHES, 302)]
    assert "Stopped watching acme/docs → Portal." in page.text
    admin.post(f"{APPS}{watches[2].app_id}/delete/", {"post": "yes"})
    assert [entry.subject for entry in by_users()] == ["acme/docs → Portal", "Search"]


def test_action_removes_after_confirmation(admin: Client, watches) -> None:
    chosen = {"action": "delete_selected", "_selected_action": [watches[0].pk, watches[2].pk]}
    answer = admin.post(f"{WATCHES}?state=up_to_date", chosen)
    assert AppRepository.objects.alive().count() == 3
    page = admin.get(answer.url)
    assert "Stop watching 2 repositories" in page.text
    assert "1 git repository that no other app watches" in page.text
    done = admin.post(answer.url, {"post": "yes"}, follow=True)
    assert "Stopped watching 2 repositories." in done.text
    assert done.redirect_chain[-1][0] == f"{WATCHES}?state=up_to_date"
    assert list(AppRepository.objects.alive()) == [watches[1]]
    assert by_users(action="repository.unwatched").count() == 2


def test_removing_many_takes_a_constant_number_of_queries(admin: Client, monkeypatch) -> None:
    monkeypatch.setattr(watching, "ENDED_AT_ONCE", 20)
    portal = make_app("Portal")

    def queries(number: int) -> int:
        for name in range(number):
            make_watch(portal, f"many-{name}")
        with CaptureQueriesContext(connection) as asked:
            admin.post(f"{WATCHES}remove/?all=1", {"post": "yes"})
        assert not AppRepository.objects.alive().exists()
        AppRepository.objects.all().delete()
        return len(asked)

    few, one_batch, two_batches = queries(2), queries(20), queries(40)
    assert one_batch == few
    assert two_batches - one_batch <= 15
    assert by_users(action="repository.unwatched").count() == 62


def test_page_linked_from_an_app_leads_back_to_it(admin: Client, watches) -> None:
    app_page = f"{APPS}{watches[0].app_id}/change/?q=docs&p=1"
    assert f"{watches[0].pk}/delete/?next={quote(app_page)}" in admin.get(app_page).text
    url = f"{WATCHES}{watches[0].pk}/delete/?next={quote(app_page)}"
    assert f'href="{escape(app_page)}">Cancel' in admin.get(url).text
    assert admin.post(url, {"post": "yes"}, follow=True).redirect_chain == [(app_page, 302)]


def test_action_with_select_across_keeps_the_filters(admin: Client, watches) -> None:
    chosen = {"action": "delete_selected", "_selected_action": [watches[0].pk], "select_across": "1"}
    answer = admin.post(f"{WATCHES}?app={watches[0].app_id}", chosen)
    page = admin.get(answer.url).text
    assert "Stop watching 2 repositories" in page
    assert "_selected_action" not in page
    admin.post(answer.url, {"post": "yes"})
    assert list(AppRepository.objects.alive()) == [watches[2]]


def test_app_action_removes_after_confirmation(admin: Client, watches) -> None:
    apps = [watches[0].app_id, watches[2].app_id]
    answer = admin.post(APPS, {"action": "delete_selected", "_selected_action": apps})
    page = admin.get(answer.url).text
    assert "This deletes Portal and Search." in page
    assert "2 git repositories that no other app watches" in page
    assert "Deleted 2 apps." in admin.post(answer.url, {"post": "yes"}, follow=True).text
    assert not App.objects.filter(ended_at=None).exists()
    assert not AppRepository.objects.alive().exists()


def test_action_asks_even_with_post_yes(admin: Client, watches) -> None:
    chosen = {"action": "delete_selected", "_selected_action": [watches[1].pk], "post": "yes"}
    assert "This can't be undone" in admin.post(WATCHES, chosen, follow=True).text
    assert AppRepository.objects.alive().count() == 3


def test_empty_selection_removes_nothing(admin: Client, watches) -> None:
    assert "no repositories in this selection" in admin.get(f"{WATCHES}remove/?ids=", follow=True).text
    admin.post(f"{WATCHES}remove/?ids=999999,x", {"post": "yes"})
    admin.post(f"{WATCHES}remove/?ids={watches[0].pk}", {"post": "no"})
    assert AppRepository.objects.alive().count() == 3


def test_form_that_is_sent_again_says_that_nothing_is_left(admin: Client, watches) -> None:
    page = f"{WATCHES}remove/?ids={watches[0].pk}"
    assert "Stopped watching 1 repository." in admin.post(page, {"post": "yes"}, follow=True).text
    assert "There are no repositories in this selection." in admin.post(page, {"post": "yes"}, follow=True).text
    missing = admin.post(f"{WATCHES}{watches[0].pk}/delete/", {"post": "yes"}, follow=True).text
    assert "Watched repository with ID" in missing


def test_get_removes_nothing(admin: Client, watches) -> None:
    for url in (
        f"{APPS}{watches[0].app_id}/delete/",
        f"{APPS}remove/?ids={watches[0].app_id}&post=yes",
        f"{WATCHES}{watches[0].pk}/delete/?post=yes",
        f"{WATCHES}remove/?all=1",
    ):
        assert admin.get(url).status_code == 200
    assert AppRepository.objects.alive().count() == 3


@pytest.mark.parametrize("permissions", [("view_app", "view_apprepository", "change_app"), ("delete_syncrun",)])
def test_forged_post_without_permission_is_refused(watches, permissions: tuple[str, ...]) -> None:
    client = staff("mallory", *permissions)
    for url in (
        f"{APPS}{watches[0].app_id}/delete/",
        f"{APPS}remove/?all=1",
        f"{WATCHES}{watches[0].pk}/delete/",
        f"{WATCHES}remove/?all=1",
    ):
        for method in (client.get, client.post):
            assert method(url, {"post": "yes"}).status_code == 403, url
    chosen = {"action": "delete_selected", "_selected_action": [watches[0].pk], "post": "yes"}
    client.post(WATCHES, chosen)
    client.post(APPS, chosen | {"_selected_action": [watches[0].app_id]})
    assert AppRepository.objects.alive().count() == 3
    assert App.objects.filter(ended_at=None).count() == 2


def test_unwatch_permission_does_not_allow_deleting_an_app(watches) -> None:
    client = staff("olga", "view_app", "view_apprepository", "delete_apprepository")
    assert client.post(f"{APPS}{watches[0].app_id}/delete/", {"post": "yes"}).status_code == 403
    client.post(f"{WATCHES}{watches[0].pk}/delete/", {"post": "yes"})
    assert AppRepository.objects.alive().count() == 2


# --- Changed since the page was shown ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["{pk}/delete/", "remove/?ids={pk}", "remove/?all=1"])
def test_app_with_a_new_watch_requires_confirming_again(admin: Client, watches, page: str) -> None:
    url = APPS + page.format(pk=watches[0].app_id)
    form = form_of(admin, url)
    make_watch(watches[0].app, "more")
    answer = admin.post(url, form, follow=True)
    assert "The selection has changed." in answer.text
    assert not App.objects.filter(ended_at__isnull=False).exists()
    admin.post(url, form_of(admin, url))
    assert App.objects.get(pk=watches[0].app_id).ended_at


@pytest.mark.parametrize("page", ["{pk}/delete/", "remove/?ids={pk}"])
def test_growth_over_ten_percent_requires_confirming_again(admin: Client, watches, page: str) -> None:
    url = WATCHES + page.format(pk=watches[0].pk)
    form = form_of(admin, url)
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=111)
    assert "has changed" in admin.post(url, form, follow=True).text
    assert AppRepository.objects.alive().count() == 3
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=110, status="failed")
    admin.post(url, form)
    assert AppRepository.objects.alive().count() == 2


def test_changed_filter_result_requires_confirming_again(admin: Client, watches) -> None:
    url = f"{APPS}remove/?all=1"
    form = form_of(admin, url)
    make_app("Empty")
    assert "has changed" in admin.post(url, form, follow=True).text
    assert App.objects.filter(ended_at=None).count() == 3
