"""Failed syncs: what is failing, why, what is tried when, and what to do about it."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Outcome, Status, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.reports.help_texts import ROOT_HINTS
from deliveries_app.services import retry_all, unwatch_repository
from repositories_app.models import Repository
from tests.support.staff import fail, make_app, make_watch, staff

LIST = "/admin/deliveries_app/failedsync/"
LIVE = "/admin/live/failed/"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", "view_apprepository", "retry_apprepository")


@pytest.fixture
def viewer(db) -> Client:
    return staff("victor", "view_apprepository")


@pytest.fixture
def failing(watches: list[AppRepository]) -> list[AppRepository]:
    """Portal's two repositories and Search's one, each with a cause of its own."""
    fail(watches[0], RootCause.SERVER_ERROR, status=502, answer="<h1>Bad gateway</h1>", retry_count=2)
    fail(watches[1], RootCause.GIT_AUTH, retry_count=4, state=Status.FAILED)
    fail(watches[2], RootCause.SERVER_ERROR, status=500, retry_count=1)
    return watches


def shown(client: Client, query: str = "") -> list[str]:
    """The rows of the list, in its order."""
    return [str(watch) for watch in client.get(f"{LIST}{query}").context["cl"].result_list]


# --- The list ------------------------------------------------------------------------------------------------------------


def test_it_shows_what_is_failing_ordered_by_root_cause(viewer: Client, failing) -> None:
    make_watch(failing[0].app, "fine")
    assert shown(viewer) == ["acme/docs → Portal", "acme/docs → Search", "acme/site → Portal"]


def test_a_row_tells_the_cause_the_answer_the_attempts_and_when_it_goes_on(viewer: Client, failing, settings) -> None:
    AppRepository.objects.filter(pk=failing[0].pk).update(
        failing_since=timezone.now() - timedelta(hours=2, minutes=1),
        next_sync_at=timezone.now() + timedelta(seconds=50),
    )
    page = viewer.get(LIST).text
    assert "Endpoint: 5xx" in page
    assert "It failed: http_5xx." in page
    assert "502" in page
    assert "&lt;h1&gt;Bad gateway" in page
    assert f"2 of {settings.MAX_RETRY_ATTEMPTS}" in page
    assert "2 h ago" in page
    assert "next <time" in page
    assert "given up" in page  # the other one, which is failed
    assert f'href="/admin/deliveries_app/apprepository/{failing[0].pk}/change/"' in page


def test_its_rows_lead_to_the_page_of_the_watched_repository(viewer: Client, failing) -> None:
    answer = viewer.get(f"{LIST}{failing[0].pk}/change/")
    assert (answer.status_code, answer.url) == (302, f"/admin/deliveries_app/apprepository/{failing[0].pk}/change/")


@pytest.mark.parametrize("state", ["syncing", "paused", "circuit", "rests", "failed", "retrying"])
def test_the_badge_says_what_it_waits_for_and_the_filter_finds_it(viewer: Client, failing, state: str) -> None:
    watch, later = failing[2], timezone.now() + timedelta(minutes=20)
    labels = {"rests": "endpoint rests", "paused": "app paused", "circuit": "circuit open"}
    if state == "circuit":
        watch = failing[1]
        Repository.objects.filter(pk=watch.repository_id).update(circuit_open_until=later)
    elif state in {"paused", "rests"}:
        App.objects.filter(pk=watch.app_id).update(
            **({"paused": True} if state == "paused" else {"cooldown_until": later})
        )
    else:
        status = {"syncing": Status.SCANNING, "failed": Status.FAILED}.get(state, Status.PENDING)
        AppRepository.objects.filter(pk=watch.pk).update(status=status)
    page = viewer.get(f"{LIST}?state={state}")
    assert str(watch) in [str(row) for row in page.context["cl"].result_list]
    assert {row.state for row in page.context["cl"].result_list} == {state}
    cell = page.text.split(f'id="failed-state-{watch.pk}"')[1].split("</div>")[0]
    assert labels.get(state, state) in cell


def test_the_next_attempt_waits_for_the_app_and_for_the_circuit_but_what_a_person_asked_for_is_the_probe(
    viewer: Client, failing
) -> None:
    AppRepository.objects.update(next_sync_at=timezone.now())
    Repository.objects.update(circuit_open_until=timezone.now() + timedelta(minutes=20))
    App.objects.update(cooldown_until=timezone.now() + timedelta(minutes=10, seconds=30))
    assert "in 19 min" in viewer.get(LIST).text
    AppRepository.objects.update(retry_count=0)
    page = viewer.get(LIST).text
    assert "in 19 min" not in page
    assert "in 10 min" in page
    App.objects.update(paused=True)
    assert "when the app is resumed" in viewer.get(LIST).text


def test_it_is_filtered_by_app_and_by_cause_and_found_by_words(viewer: Client, failing) -> None:
    assert shown(viewer, f"?app={failing[2].app_id}") == ["acme/docs → Search"]
    assert shown(viewer, "?cause=git_auth") == ["acme/site → Portal"]
    assert shown(viewer, "?q=git_auth") == ["acme/site → Portal"]
    assert shown(viewer, f"?cause=http_5xx&app={failing[0].app_id}") == ["acme/docs → Portal"]


@pytest.mark.parametrize(
    "query", ["?app=x", f"?app={'9' * 30}", "?cause=x", "?state=x", "?operation=x", "?operation=%00", "?_facets=True"]
)
def test_a_filter_that_means_nothing_breaks_nothing(viewer: Client, failing, query: str) -> None:
    assert viewer.get(f"{LIST}{query}", follow=True).status_code in {200, 400}


def test_of_an_operation_it_shows_what_failed_and_is_failing_still(viewer: Client, failing) -> None:
    operation = retry_all(Actor.system())
    SyncRun.objects.exclude(watch=failing[2]).update(outcome=Outcome.FAILED, ended_at=timezone.now())
    AppRepository.objects.filter(pk=failing[1].pk).update(failing_since=None, root_cause="")
    page = viewer.get(f"{LIST}?operation={operation.operation_id}")
    assert [row.pk for row in page.context["cl"].result_list] == [failing[0].pk]
    assert "Retry all failed" in page.text


def test_an_empty_list_says_that_all_is_well(viewer: Client, watches) -> None:
    assert "Nothing is failing." in viewer.get(LIST).text


def test_what_is_no_longer_watched_is_not_listed(viewer: Client, failing) -> None:
    unwatch_repository(Actor.system(), failing[1])
    assert "acme/site" not in viewer.get(LIST).text


# --- The groups ----------------------------------------------------------------------------------------------------------


def test_every_root_cause_has_a_hint_in_sentences() -> None:
    assert set(ROOT_HINTS) == set(RootCause)
    assert [hint for hint in ROOT_HINTS.values() if not hint.endswith(".") or hint != hint.strip()] == []


def test_each_cause_is_a_group_with_its_number_what_to_do_and_a_way_to_its_rows(operator: Client, failing) -> None:
    page = operator.get(LIST)
    counts = [(group.cause.value, group.count, group.apps) for group, _, _ in page.context["groups"]]
    assert counts == [("http_5xx", 2, 2), ("git_auth", 1, 1)]
    assert "3 repositories are failing" in page.text
    assert "The git host refuses the token" in page.text
    assert 'href="?cause=http_5xx"' in page.text
    assert f"{LIST}retry-failed/?all=1&amp;next=" in page.text
    assert "cause=git_auth" in page.text


def test_filtered_by_an_app_the_groups_are_of_it_and_so_are_their_buttons(operator: Client, failing) -> None:
    app = failing[2].app
    page = operator.get(f"{LIST}?app={app.pk}")
    assert [(group.cause.value, group.count) for group, _, _ in page.context["groups"]] == [("http_5xx", 1)]
    assert "1 repository of Search is failing" in page.text
    assert f"retry-failed/?all=1&amp;app={app.pk}&amp;next=" in page.text
    assert f'href="?app={app.pk}&amp;cause=http_5xx"' in page.text


def test_who_may_not_retry_is_offered_no_button(viewer: Client, failing) -> None:
    page = viewer.get(LIST).text
    assert "retry-failed" not in page
    assert "/retry/?next=" not in page
    assert "Endpoint: 5xx" in page


# --- What refreshes itself -----------------------------------------------------------------------------------------------


def live(client: Client, *pks: int, query: str = "") -> str:
    ids = ",".join(map(str, pks))
    return client.get(f"{LIVE}?ids={ids}{query}", HTTP_HX_REQUEST="true").text


def test_the_list_asks_for_its_groups_and_its_rows_every_five_seconds(operator: Client, failing) -> None:
    page = operator.get(f"{LIST}?cause=http_5xx").text
    assert f'hx-get="{LIVE}?ids={failing[0].pk}%2C{failing[2].pk}&amp;cause=http_5xx"' in page
    assert 'hx-trigger="every 5s, docora:refresh"' in page


def test_the_groups_and_each_cell_come_anew_into_their_places(operator: Client, failing) -> None:
    AppRepository.objects.filter(pk=failing[0].pk).update(status=Status.SCANNING)
    answer = live(operator, failing[0].pk)
    assert "3 repositories are failing" in answer
    for name in ("state", "cause", "attempts", "since"):
        assert f'<div id="failed-{name}-{failing[0].pk}" class="failed-{name}" hx-swap-oob="true">' in answer
    assert "syncing" in answer
    assert "_selected_action" not in answer
    assert f"failed-action-{failing[0].pk}" not in answer  # its button is left where it is


def test_a_row_that_was_mended_says_so_and_loses_its_button(operator: Client, failing) -> None:
    AppRepository.objects.filter(pk=failing[0].pk).update(failing_since=None, root_cause="", status=Status.SYNCED)
    unwatch_repository(Actor.system(), failing[1])
    answer = live(operator, failing[0].pk, failing[1].pk)
    assert "1 repository is failing" in answer
    assert "synced" in answer.split(f'id="failed-state-{failing[0].pk}"')[1].split("</div>")[0]
    assert "no longer watched" in answer.split(f'id="failed-state-{failing[1].pk}"')[1].split("</div>")[0]
    for watch in failing[:2]:
        assert f'<div id="failed-action-{watch.pk}" class="failed-action" hx-swap-oob="true"></div>' in answer


def test_the_refresh_leads_back_to_the_page_that_asks(operator: Client, failing) -> None:
    page = f"http://testserver{LIST}?app={failing[0].app_id}"
    headers = {"HTTP_HX_REQUEST": "true", "HTTP_HX_CURRENT_URL": page}
    answer = operator.get(f"{LIVE}?ids=&app={failing[0].app_id}", **headers).text
    assert f"next=%2Fadmin%2Fdeliveries_app%2Ffailedsync%2F%3Fapp%3D{failing[0].app_id}" in answer


def test_who_may_not_see_it_gets_a_word_and_no_page(client: Client, failing) -> None:
    nobody = client.get(LIVE, HTTP_HX_REQUEST="true")
    assert (nobody.status_code, "Sign in again" in nobody.text) == (401, True)
    stranger = staff("norbert", "view_app", "retry_apprepository")
    assert stranger.get(LIVE, HTTP_HX_REQUEST="true").status_code == 403
    assert stranger.get(LIST).status_code == 403
    assert stranger.get(f"{LIST}{failing[0].pk}/change/").status_code == 403
    assert client.get(LIST).status_code == 302
    assert staff("paul", "view_apprepository").post(LIVE).status_code == 405


def test_the_page_and_its_refresh_take_the_same_queries_for_many_rows(
    operator: Client, failing, django_assert_max_num_queries
) -> None:
    for number in range(40):
        app = make_app(f"App {number}")
        fail(make_watch(app, f"many-{number}"), list(RootCause)[number % len(RootCause)])
    with django_assert_max_num_queries(14):
        operator.get(LIST)
    everything = AppRepository.objects.values_list("pk", flat=True)
    with django_assert_max_num_queries(7):
        live(operator, *everything)
