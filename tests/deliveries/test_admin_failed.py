"""The Failed syncs page: what fails, why, the next attempt, and hints."""

import re
from datetime import timedelta
from html import unescape
from ipaddress import ip_network

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Outcome, StateDetail, Status, SyncPause, SyncRun
from deliveries_app.models.root_causes import RootCause, of_delivery, of_git
from deliveries_app.reports.help_texts import ROOT_HINTS
from deliveries_app.services import retry_all, unwatch_repository
from docora.http.client import HttpClient, Request
from repositories_app.git.errors import rate_limited
from repositories_app.git.url import host_of
from repositories_app.models import HostOutage, Repository
from tests.support.admin_pages import superuser
from tests.support.doctor import silent_host
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
    """Portal's two repositories and Search's one, each with a different cause."""
    fail(watches[0], RootCause.SERVER_ERROR, status=502, answer="<h1>Bad gateway</h1>", retry_count=2)
    fail(watches[1], RootCause.GIT_AUTH, retry_count=4, state=Status.FAILED)
    fail(watches[2], RootCause.SERVER_ERROR, status=500, retry_count=1)
    return watches


def shown(client: Client, query: str = "") -> list[str]:
    """Return the rows of the list, in its order."""
    return [str(watch) for watch in client.get(f"{LIST}{query}").context["cl"].result_list]


# --- The list ------------------------------------------------------------------------------------------------------------


def test_list_is_ordered_by_root_cause(viewer: Client, failing) -> None:
    make_watch(failing[0].app, "fine")
    assert shown(viewer) == ["acme/docs → Portal", "acme/docs → Search", "acme/site → Portal"]


def test_row_shows_cause_response_attempts_and_next_attempt(viewer: Client, failing, settings) -> None:
    AppRepository.objects.filter(pk=failing[0].pk).update(
        failing_since=timezone.now() - timedelta(hours=2, minutes=1),
        next_sync_at=timezone.now() + timedelta(seconds=50),
    )
    page = viewer.get(LIST).text
    assert "Endpoint: 5xx" in page
    assert "It failed: http_5xx." in page
    assert "<code>502</code>" in page
    assert "Bad gateway" not in page
    assert "&lt;h1&gt;Bad gateway" in staff("rita", "view_apprepository", "view_payloads").get(LIST).text
    assert f"2 of {settings.MAX_RETRY_ATTEMPTS}" in page
    assert "<span>None left</span>" in page  # of the other one, which may have failed for good at its first attempt
    assert "2 h ago" in page
    assert "Next try <time" in page
    assert "Failed</span>" in page  # the other one
    assert f'href="/admin/deliveries_app/apprepository/{failing[0].pk}/change/"' in page


def test_rows_link_to_the_watch(viewer: Client, failing) -> None:
    answer = viewer.get(f"{LIST}{failing[0].pk}/change/")
    assert (answer.status_code, answer.url) == (302, f"/admin/deliveries_app/apprepository/{failing[0].pk}/change/")


@pytest.mark.parametrize(
    ("detail", "label"),
    [
        (StateDetail.SYNCING, "Syncing"),
        (StateDetail.APP_PAUSED, "Paused the app is paused"),
        (StateDetail.WATCH_PAUSED, "Paused the repository is paused"),
        (StateDetail.ALL_PAUSED, "Paused all syncing is paused"),
        (StateDetail.CIRCUIT_OPEN, "On hold until {} · open circuit"),
        (StateDetail.HOST_DOWN, "On hold until {} · git host unreachable"),
        (StateDetail.COOLDOWN, "On hold until {} · endpoint cooldown"),
        (StateDetail.FAILED, "Failed"),
        (StateDetail.RETRYING, "Retrying in 19 min"),
    ],
)
def test_state_badge_and_filter(viewer: Client, failing, detail: StateDetail, label: str) -> None:
    watch, later = failing[1], timezone.now() + timedelta(minutes=20)
    row, app = AppRepository.objects.filter(pk=watch.pk), App.objects.filter(pk=watch.app_id)
    row.update(status=Status.PENDING)
    match detail:
        case StateDetail.SYNCING:
            row.update(status=Status.SCANNING, lease_until=timezone.now() + timedelta(seconds=20))
        case StateDetail.APP_PAUSED:
            app.update(paused=True)
        case StateDetail.WATCH_PAUSED:
            row.update(paused_at=timezone.now())
        case StateDetail.ALL_PAUSED:
            SyncPause.objects.create(paused_by="anna")
        case StateDetail.CIRCUIT_OPEN:
            Repository.objects.filter(pk=watch.repository_id).update(circuit_open_until=later)
        case StateDetail.HOST_DOWN:
            url = watch.repository.canonical_url
            HostOutage.objects.create(host=host_of(url), since=timezone.now(), retry_at=later, error="It is down.")
        case StateDetail.COOLDOWN:
            app.update(cooldown_until=later)
        case StateDetail.FAILED:
            row.update(status=Status.FAILED)
        case StateDetail.RETRYING:
            row.update(next_sync_at=later)
    page = viewer.get(f"{LIST}?state={detail.state.value}")
    assert str(watch) in [str(row) for row in page.context["cl"].result_list]
    assert {row.state for row in page.context["cl"].result_list} == {detail.state}
    cell = page.text.split(f'id="failed-state-{watch.pk}"')[1].split(">", 1)[1].split("</div>")[0]
    assert re.sub("<[^>]*>", "", cell) == label.format(f"{timezone.localtime(later):%H:%M %Z}")


def test_a_dead_worker_s_watch_is_not_syncing(viewer: Client, failing) -> None:
    gone = timezone.now() - timedelta(seconds=1)
    AppRepository.objects.filter(pk=failing[0].pk).update(status=Status.SCANNING, lease_until=gone)
    assert shown(viewer, "?state=syncing") == []
    assert "acme/docs → Portal" in shown(viewer, "?state=retrying")


def test_next_attempt_waits_for_app_and_circuit_unless_requested(viewer: Client, failing) -> None:
    AppRepository.objects.update(next_sync_at=timezone.now())
    Repository.objects.update(circuit_open_until=timezone.now() + timedelta(minutes=20))
    App.objects.update(cooldown_until=timezone.now() + timedelta(minutes=10, seconds=30))
    assert "in 19 min" in viewer.get(LIST).text
    retry_all(Actor.system())
    page = viewer.get(LIST).text
    assert "in 19 min" not in page
    assert "in 10 min" in page
    App.objects.update(paused=True)
    assert "Continues when the app is resumed" in viewer.get(LIST).text


def test_filters_by_app_and_cause_and_searches_errors(viewer: Client, failing) -> None:
    assert shown(viewer, f"?app={failing[2].app_id}") == ["acme/docs → Search"]
    assert shown(viewer, "?cause=git_auth") == ["acme/site → Portal"]
    assert shown(viewer, "?q=git_auth") == ["acme/site → Portal"]
    assert shown(viewer, f"?cause=http_5xx&app={failing[0].app_id}") == ["acme/docs → Portal"]


@pytest.mark.parametrize(
    "query", ["?app=x", f"?app={'9' * 30}", "?cause=x", "?state=x", "?operation=x", "?operation=%00", "?_facets=True"]
)
def test_invalid_filters_are_harmless(viewer: Client, failing, query: str) -> None:
    assert viewer.get(f"{LIST}{query}", follow=True).status_code in {200, 400}


def test_operation_filter_shows_what_still_fails(failing) -> None:
    viewer = staff("vera", "view_apprepository", "view_bulkoperation")
    operation = retry_all(Actor.system())
    SyncRun.objects.exclude(watch=failing[2]).update(outcome=Outcome.FAILED, ended_at=timezone.now())
    AppRepository.objects.filter(pk=failing[1].pk).update(failing_since=None, root_cause="")
    page = viewer.get(f"{LIST}?operation={operation.pk}")
    assert [row.pk for row in page.context["cl"].result_list] == [failing[0].pk]
    assert "Retry all failed" in page.text


def test_empty_list_says_that_nothing_fails(viewer: Client, watches) -> None:
    assert "No failures." in viewer.get(LIST).text
    assert "No failures for a deleted app." in viewer.get(f"{LIST}?app=999999").text
    assert "No failures for apps named “None…”." in viewer.get(f"{LIST}?app_name=None").text


def test_ended_watches_are_not_listed(viewer: Client, failing) -> None:
    unwatch_repository(Actor.system(), failing[1])
    assert "acme/site" not in viewer.get(LIST).text


def test_paused_app_is_resumed_from_the_list(operator: Client, failing) -> None:
    """Retrying a paused app sends nothing, so its rows offer what does."""
    boss = staff("bea", "view_apprepository", "change_app")
    assert 'form="retry-now" class="button button-quiet"' not in boss.get(LIST).text
    App.objects.filter(pk=failing[0].app_id).update(paused=True)
    resume = f"/admin/deliveries_app/app/{failing[0].app_id}/resume/"
    pages = [boss.get(LIST).text, boss.get(f"{LIVE}?ids={failing[0].pk},{failing[2].pk}", HTTP_HX_REQUEST="true").text]
    assert (
        f'formaction="{resume}?next=%2Fadmin%2Fdeliveries_app%2Ffailedsync%2F" aria-label="Resume Portal"' in pages[0]
    )
    for page in pages:
        assert f'id="resume-{failing[0].pk}" form="retry-now"' in page
        assert f'id="resume-{failing[2].pk}"' not in page
    assert resume not in operator.get(LIST).text
    answer = boss.post(f"{resume}?next={LIST}", follow=True)
    assert answer.redirect_chain == [(LIST, 302)]
    assert "Portal is resumed." in answer.text
    assert not App.objects.filter(paused=True).exists()


def test_hint_for_410_is_to_resume_the_app() -> None:
    assert "If 410 has paused the app, resume it instead." in ROOT_HINTS[RootCause.CLIENT_ERROR].advice


def test_hint_for_a_redirect_names_what_to_leave_out() -> None:
    """The Location of a redirect ends with /create. As a base URL, it would lead to /create/create."""
    assert "the Location in its response, but without the last part" in ROOT_HINTS[RootCause.UNEXPECTED].advice


# --- The groups ----------------------------------------------------------------------------------------------------------


def test_every_root_cause_has_a_hint() -> None:
    assert set(ROOT_HINTS) == set(RootCause)


def test_hint_for_a_failure_of_the_machine_names_the_disk() -> None:
    assert "a full disk" in ROOT_HINTS[RootCause.INTERNAL].explanation


def test_hint_for_a_timeout_applies_to_an_app_that_cannot_be_connected_to() -> None:
    with silent_host() as silent, HttpClient([ip_network("127.0.0.0/8")], allow_http=True) as client:
        outcome = client.request(Request("POST", f"https://{silent}/create", connect_timeout=0.3))
    assert "Couldn't connect" in outcome.message
    hint = ROOT_HINTS[of_delivery(str(outcome.cause), outcome.status)]
    assert hint.explanation.startswith("The app can't be reached within 5 seconds, or takes longer than 30 seconds")


def test_hints_apply_to_github_apps_and_rate_limits() -> None:
    """Their failures have these causes too."""
    refused = ROOT_HINTS[RootCause.GIT_AUTH]
    assert "GitHub App" in refused.explanation
    assert "stored token" in refused.advice
    limited = of_git(rate_limited(None, token="t").cause)
    assert "limits requests" in ROOT_HINTS[limited].explanation


@pytest.mark.parametrize("cause", [RootCause.GIT_AUTH, RootCause.GIT_NOT_FOUND, RootCause.GIT_HOST, RootCause.INTERNAL])
def test_page_of_a_repository_does_not_explain_an_error_that_explains_itself(cause: RootCause, failing) -> None:
    """A git error said what was wrong and what to do, and below it the page guessed at several other reasons."""
    boss, url = superuser(), f"/admin/deliveries_app/apprepository/{failing[0].pk}/change/"
    hint, of_endpoint = ROOT_HINTS[cause], ROOT_HINTS[RootCause.SERVER_ERROR]
    fail(failing[0], cause)
    page = unescape(boss.get(url).text)
    assert hint.advice in page
    assert hint.explanation not in page
    assert f"{hint.explanation} {hint.advice}" in unescape(boss.get(LIST).text)
    fail(failing[0], RootCause.SERVER_ERROR, status=500)
    assert f"{of_endpoint.explanation} {of_endpoint.advice}" in unescape(boss.get(url).text)


def test_groups_show_count_hint_and_link(operator: Client, failing) -> None:
    page = operator.get(LIST)
    counts = [(group.cause, group.count, group.apps) for group, _, _ in page.context["groups"]]
    assert counts == [("http_5xx", 2, 2), ("git_auth", 1, 1)]
    assert "3 failing repositories" in page.text
    assert "The git host rejected the token" in page.text
    assert 'href="?cause=http_5xx"' in page.text
    assert f"{LIST}retry-failed/?all=1&amp;next=" in page.text
    assert "cause=git_auth" in page.text


def test_app_filter_applies_to_groups_and_buttons(operator: Client, failing) -> None:
    app = failing[2].app
    page = operator.get(f"{LIST}?app={app.pk}")
    assert [(group.cause, group.count) for group, _, _ in page.context["groups"]] == [("http_5xx", 1)]
    assert "1 failing repository for Search" in page.text
    assert f"retry-failed/?all=1&amp;app={app.pk}&amp;next=" in page.text
    assert f'href="?app={app.pk}&amp;cause=http_5xx"' in page.text


def test_retry_buttons_need_permission(viewer: Client, failing) -> None:
    page = viewer.get(LIST).text
    assert "retry-failed" not in page
    assert "/retry/?next=" not in page
    assert "Endpoint: 5xx" in page


# --- Polling ----------------------------------------------------------------------------------------------------------


def live(client: Client, *pks: int, query: str = "") -> str:
    ids = ",".join(map(str, pks))
    return client.get(f"{LIVE}?ids={ids}{query}", HTTP_HX_REQUEST="true").text


def test_list_polls_groups_and_rows_every_five_seconds(operator: Client, failing) -> None:
    page = operator.get(f"{LIST}?cause=http_5xx").text
    assert (
        f'hx-get="{LIVE}?ids={failing[0].pk}%2C{failing[2].pk}&amp;cause=http_5xx&amp;count=2&amp;filtered=1"' in page
    )
    assert 'hx-trigger="every 5s, docora:refresh"' in page


def test_poll_replaces_groups_and_cells(operator: Client, failing) -> None:
    soon = timezone.now() + timedelta(seconds=20)
    AppRepository.objects.filter(pk=failing[0].pk).update(status=Status.SCANNING, lease_until=soon)
    answer = live(operator, failing[0].pk)
    assert "3 failing repositories" in answer
    for name in ("state", "cause", "attempts", "since", "action"):
        assert (
            f'<div id="failed-{name}-{failing[0].pk}" class="failed-{name}" data-live-part hx-swap-oob="true">'
            in answer
        )
    assert "Syncing" in answer
    assert "_selected_action" not in answer
    assert f'id="retry-{failing[0].pk}"' in answer  # a row that had recovered gets its button again
    viewer = staff("vera", "view_apprepository")
    assert "failed-action" not in live(viewer, failing[0].pk)


def test_recovered_row_shows_status_and_no_button(operator: Client, failing) -> None:
    AppRepository.objects.filter(pk=failing[0].pk).update(
        failing_since=None, root_cause="", status=Status.SYNCED, next_sync_at=None
    )
    unwatch_repository(Actor.system(), failing[1])
    answer = live(operator, failing[0].pk, failing[1].pk)
    assert "1 failing repository" in answer
    assert "Up to date" in answer.split(f'id="failed-state-{failing[0].pk}"')[1].split("</div>")[0]
    assert "No longer watched" in answer.split(f'id="failed-state-{failing[1].pk}"')[1].split("</div>")[0]
    for watch in failing[:2]:
        assert (
            f'<div id="failed-action-{watch.pk}" class="failed-action" data-live-part hx-swap-oob="true"></div>'
            in answer
        )


def test_number_below_the_list_leaves_out_recovered_rows(operator: Client, failing) -> None:
    page = operator.get(LIST).text
    assert '<span id="result-count">3 failed syncs</span>' in page
    [url] = re.findall(rf'hx-get="({LIVE}[^"]*)"', page)
    number = '<span id="result-count" hx-swap-oob="innerHTML">{}</span>'
    AppRepository.objects.filter(pk=failing[0].pk).update(failing_since=None, root_cause="", status=Status.SYNCED)
    assert number.format("2 failed syncs") in operator.get(unescape(url), HTTP_HX_REQUEST="true").text
    AppRepository.objects.update(failing_since=None, root_cause="", status=Status.SYNCED)
    answer = operator.get(unescape(url), HTTP_HX_REQUEST="true").text
    assert "No failures." in answer
    assert number.format("0 failed syncs") in answer
    beside_the_search = '<span hx-swap-oob="innerHTML:#changelist-search .quiet">0 results ('
    assert beside_the_search not in answer  # the list is not filtered
    assert beside_the_search in operator.get(f"{unescape(url)}&filtered=1", HTTP_HX_REQUEST="true").text


def test_open_list_says_that_more_repositories_have_failed(operator: Client, watches: list[AppRepository]) -> None:
    """The groups above it showed them, and the list said "No failed syncs"."""
    [url] = re.findall(rf'hx-get="({LIVE}[^"]*)"', operator.get(LIST).text)
    notice = '<p id="unlisted" class="notice" hx-swap-oob="true"{}>'
    assert notice.format(" hidden") in operator.get(unescape(url), HTTP_HX_REQUEST="true").text
    fail(watches[0], RootCause.SERVER_ERROR)
    fail(watches[1], RootCause.GIT_AUTH)
    answer = operator.get(unescape(url), HTTP_HX_REQUEST="true").text
    assert f"{notice.format('')}2 more repositories have failed since this page was loaded." in answer
    assert notice.format(" hidden") in operator.get(f"{unescape(url)}&filtered=1", HTTP_HX_REQUEST="true").text


def test_links_in_a_poll_return_to_the_polling_page(operator: Client, failing) -> None:
    page = f"http://testserver{LIST}?app={failing[0].app_id}"
    headers = {"HTTP_HX_REQUEST": "true", "HTTP_HX_CURRENT_URL": page}
    answer = operator.get(f"{LIVE}?ids=&app={failing[0].app_id}", **headers).text
    assert f"next=%2Fadmin%2Fdeliveries_app%2Ffailedsync%2F%3Fapp%3D{failing[0].app_id}" in answer


def test_poll_without_permission_gets_a_notice(client: Client, failing) -> None:
    nobody = client.get(LIVE, HTTP_HX_REQUEST="true")
    assert (nobody.status_code, "Sign in again" in nobody.text) == (401, True)
    stranger = staff("norbert", "view_app", "retry_apprepository")
    assert stranger.get(LIVE, HTTP_HX_REQUEST="true").status_code == 403
    assert stranger.get(LIST).status_code == 403
    assert stranger.get(f"{LIST}{failing[0].pk}/change/").status_code == 403
    assert client.get(LIST).status_code == 302
    assert staff("paul", "view_apprepository").post(LIVE).status_code == 405


def test_query_count_is_constant(operator: Client, failing, django_assert_max_num_queries) -> None:
    for number in range(40):
        app = make_app(f"App {number}")
        fail(make_watch(app, f"many-{number}"), list(RootCause)[number % len(RootCause)])
    with django_assert_max_num_queries(14):
        operator.get(LIST)
    everything = AppRepository.objects.values_list("pk", flat=True)
    with django_assert_max_num_queries(7):
        live(operator, *everything)
