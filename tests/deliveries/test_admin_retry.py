"""Retry: one watch at once, several after a confirmation, and clearly distinct from a re-sync."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Reason, Status, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.services import retry_all
from repositories_app.models import HostOutage, Repository
from tests.support.audit import by_users, messages
from tests.support.staff import VIEWS, fail, make_app, make_watch, staff

LIST = "/admin/deliveries_app/failedsync/"
ASK = f"{LIST}retry-failed/"
WATCHES = "/admin/deliveries_app/apprepository/"


@pytest.fixture
def operator(db) -> Client:
    return staff("olga", *(f"view_{model}" for model in VIEWS), "retry_apprepository")


@pytest.fixture
def failing(watches: list[AppRepository]) -> list[AppRepository]:
    """Portal's two repositories and Search's one. The second's number of files is from an earlier attempt."""
    fail(watches[0], RootCause.SERVER_ERROR, status=502, base_commit="c" * 40, files_failing=3)
    fail(watches[1], RootCause.GIT_AUTH, state=Status.FAILED, retry_count=4, files_failing=7)
    fail(watches[2], RootCause.SERVER_ERROR, status=500, base_commit="c" * 40, files_failing=2)
    return watches


def retried() -> list[str]:
    """Return the watches with a requested retry, in order."""
    return [str(run.watch) for run in SyncRun.objects.filter(reason=Reason.RETRY, outcome="").order_by("watch")]


def ids(*watches: AppRepository) -> str:
    return f"{ASK}?ids={','.join(str(watch.pk) for watch in watches)}"


def form_of(client: Client, url: str) -> dict[str, str]:
    """Return what the confirmation page's form would post."""
    context = client.get(url).context
    return {
        "post": "yes",
        "selection_digest": context["selection_digest"],
        "selection_rows": str(context["selection_rows"]),
        "selection_files": str(context["selection_files"]),
    }


# --- One ----------------------------------------------------------------------------------------------------------------


def test_row_button_retries_at_once_and_redirects_back(operator: Client, failing) -> None:
    page = operator.get(f"{LIST}?cause=git_auth").text
    back = "next=%2Fadmin%2Fdeliveries_app%2Ffailedsync%2F%3Fcause%3Dgit_auth"
    assert f'form="retry-now" class="button button-retry" formaction="{WATCHES}{failing[1].pk}/retry/?{back}"' in page
    assert '<form id="retry-now" method="post" hidden>' in page
    answer = operator.post(f"{WATCHES}{failing[1].pk}/retry/?{back}", follow=True)
    assert answer.redirect_chain == [(f"{LIST}?cause=git_auth", 302)]
    assert "Retry queued for acme/site → Portal. Only unacknowledged files are sent." in answer.text
    assert retried() == ["acme/site → Portal"]
    assert messages(by_users()) == ["Retry of acme/site → Portal"]
    watch = AppRepository.objects.get(pk=failing[1].pk)
    assert (watch.status, watch.retry_count, watch.generation) == (Status.PENDING, 0, 1)


def test_retry_of_a_paused_app_waits(operator: Client, failing) -> None:
    App.objects.update(paused=True)
    answer = operator.post(f"{WATCHES}{failing[0].pk}/retry/", follow=True)
    assert "The retry starts when the app is resumed." in answer.text
    App.objects.update(paused=False)
    AppRepository.objects.update(paused_at=timezone.now())
    answer = operator.post(f"{WATCHES}{failing[0].pk}/retry/", follow=True)
    assert "The retry starts when the repository is resumed." in answer.text


def test_retry_of_a_busy_app_says_when_it_starts(operator: Client, failing) -> None:
    until = timezone.now() + timedelta(minutes=40)
    App.objects.update(cooldown_until=until)
    answer = operator.post(f"{WATCHES}{failing[0].pk}/retry/", follow=True)
    assert f"The retry starts at {timezone.localtime(until):%H:%M %Z}, because the app is too busy." in answer.text


def test_retry_during_an_outage_of_the_git_host_waits(operator: Client, failing) -> None:
    now = timezone.now()
    HostOutage.objects.create(host="https://github.com/", since=now, retry_at=now + timedelta(minutes=5), error="Down.")
    answer = operator.post(f"{WATCHES}{failing[1].pk}/retry/", follow=True)
    assert "The retry starts once Docora can reach the git host again." in answer.text
    assert not AppRepository.objects.due().exists()
    Repository.objects.update(circuit_open_until=now + timedelta(hours=1))  # lets the first attempt through
    answer = operator.post(f"{WATCHES}{failing[1].pk}/retry/", follow=True)
    assert "Only unacknowledged files are sent." in answer.text
    assert "The retry starts" not in answer.text
    assert AppRepository.objects.due().filter(pk=failing[1].pk).exists()


def test_recovered_watch_is_not_retried(operator: Client, failing) -> None:
    AppRepository.objects.update(failing_since=None, root_cause="")
    answer = operator.post(f"{WATCHES}{failing[0].pk}/retry/", follow=True)
    assert "acme/docs → Portal is no longer failing." in answer.text
    assert retried() == []


def test_get_does_nothing(operator: Client, failing) -> None:
    assert operator.get(f"{WATCHES}{failing[0].pk}/retry/").status_code == 405
    assert retried() == []


def test_post_without_csrf_token_is_refused(failing) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root", password="x"))
    assert client.post(f"{WATCHES}{failing[0].pk}/retry/").status_code == 403
    assert client.post(ids(*failing), {"post": "yes"}).status_code == 403
    assert retried() == []


@pytest.mark.parametrize(
    "page",
    ["apprepository/", "apprepository/{watch}/change/", "../repositories_app/repository/{repository}/change/"],
    ids=["the list", "its own page", "the page of its git repository"],
)
def test_failing_watch_has_a_retry_button_on_every_page(operator: Client, failing, page: str) -> None:
    docs = failing[0]
    url = "/admin/deliveries_app/" + page.format(watch=docs.pk, repository=docs.repository_id)
    url = url.replace("deliveries_app/../", "")
    assert f"{WATCHES}{docs.pk}/retry/?next=" in operator.get(url).text
    AppRepository.objects.update(failing_since=None, root_cause="")
    assert "/retry/?next=" not in operator.get(url).text


# --- Several ------------------------------------------------------------------------------------------------------------


def choose(client: Client, url: str, *pks: int, **extra: str) -> str:
    return client.post(url, {"action": "retry", "_selected_action": list(pks), "index": "0", **extra}).url


def test_confirmation_shows_what_is_sent(operator: Client, failing) -> None:
    url = choose(operator, LIST, failing[0].pk, failing[1].pk, failing[2].pk)
    page = operator.get(url).text
    assert "This will retry 3 failing repositories for 2 apps." in page
    assert "Only files that clients haven't acknowledged are sent." in page
    assert "5 files" in page
    assert "plus 1 repository with an unknown number of files" in page
    assert "Failed</span>" in page
    assert "Retry 3 repositories" in page
    for word in ("re-sync 3", "ALL files", "Danger", "button-resync"):
        assert word not in page
    assert retried() == []


def test_total_of_unknown_numbers_is_unknown(operator: Client, failing) -> None:
    page = " ".join(operator.get(ids(failing[1])).text.split())
    assert '<td class="numeric">Unknown number of files</td>' in page
    assert "7 files" not in page


def test_number_of_files_is_unknown_if_no_file_was_tried(operator: Client, failing) -> None:
    """The last sync sent everything, but since then the repository can't be read: its newest commit may have any files."""
    AppRepository.objects.filter(pk=failing[1].pk).update(base_commit="c" * 40, files_failing=0)
    page = " ".join(operator.get(ids(failing[1])).text.split())
    assert '<td class="numeric">Unknown</td>' in page
    assert '<td class="numeric">Unknown number of files</td>' in page
    assert "0 files" not in page


def test_confirmation_for_a_paused_app_has_a_button_to_resume_it(operator: Client, failing) -> None:
    App.objects.filter(pk=failing[0].app_id).update(paused=True)
    url = ids(*failing[:2])
    resume = f"/admin/deliveries_app/app/{failing[0].app_id}/resume/?next="
    boss = staff("bea", *(f"view_{model}" for model in VIEWS), "retry_apprepository", "change_app")
    assert resume in boss.get(url).text
    assert resume not in operator.get(url).text
    assert "/app/?paused__exact=1" in operator.get(ids(*failing)).text  # of several apps
    page = boss.get(f"{WATCHES}{failing[0].pk}/change/").text
    assert "The app is paused." in page
    assert resume in page
    assert f"{resume}/admin/" in boss.get("/admin/").text


def test_confirmed_retry_is_one_operation(operator: Client, failing) -> None:
    url = choose(operator, LIST, *(watch.pk for watch in failing))
    answer = operator.post(url, form_of(operator, url), follow=True)
    operation = BulkOperation.objects.get()
    assert answer.redirect_chain == [(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/", 302)]
    assert "Retry of 3 repositories requested." in answer.text
    assert (operation.kind, operation.total, operation.title) == ("retry", 3, "Retry · 3 repositories")
    assert "progress-box-retry" in answer.text
    assert "Cancel" in answer.text
    assert len(retried()) == 3
    assert set(AppRepository.objects.values_list("generation", "resend_floor")) == {(1, 1)}


def test_only_failing_watches_of_a_selection_are_retried(operator: Client, failing) -> None:
    make_watch(failing[0].app, "fine")
    url = choose(operator, f"{WATCHES}?q=docs", failing[0].pk, select_across="1")
    assert "2 failing repositories for 2 apps" in operator.get(url).text
    operator.post(url, form_of(operator, url))
    assert retried() == ["acme/docs → Portal", "acme/docs → Search"]


def test_selection_without_failures_shows_a_warning(operator: Client, watches) -> None:
    url = choose(operator, WATCHES, watches[0].pk)
    assert "no failing repositories" in operator.get(url, follow=True).text
    assert "no failing repositories" in operator.get(f"{ASK}?all=1", follow=True).text


@pytest.mark.parametrize(
    ("query", "title", "expected", "count"),
    [
        ("", "Retry all failed", "3 failing repositories for 2 apps", 3),
        ("&app={portal}", "Retry all failed · Portal", "all 2 failing repositories for Portal", 2),
        ("&cause=http_5xx", "Retry · Endpoint: 5xx", "2 failing repositories for 2 apps", 2),
        ("&state=retrying", "Retry · 2 repositories", "2 failing repositories for 2 apps", 2),
    ],
    ids=["everything", "an app", "a group", "a state"],
)
def test_operation_title_names_the_filters(
    operator: Client, failing, query: str, title: str, expected: str, count: int
) -> None:
    url = f"{ASK}?all=1{query.format(portal=failing[0].app_id)}"
    assert expected in operator.get(url).text
    operator.post(url, form_of(operator, url))
    operation = BulkOperation.objects.get()
    assert (operation.title, operation.total) == (title, count)
    assert (operation.app is not None) is (query.startswith("&app"))


def test_single_watch_is_an_operation_of_one(operator: Client, failing) -> None:
    url = f"{ASK}?all=1&cause=git_auth&next={LIST}?o=1"
    assert "This will retry acme/site for Portal." in operator.get(url).text
    answer = operator.post(url, form_of(operator, url), follow=True)
    operation = BulkOperation.objects.get()
    assert answer.redirect_chain == [(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/", 302)]
    assert "Retry of 1 repository requested." in answer.text


# --- Changed since the page was shown ---------------------------------------------------------------------------------


def test_failures_that_come_and_go_are_no_reason_to_confirm_again(operator: Client, failing) -> None:
    url = f"{ASK}?all=1"
    form = form_of(operator, url)
    AppRepository.objects.filter(pk=failing[0].pk).update(failing_since=None, root_cause="", status=Status.SYNCED)
    fail(make_watch(failing[0].app, "more"), RootCause.DNS)
    operator.post(url, form)
    assert retried() == ["acme/more → Portal", "acme/site → Portal", "acme/docs → Search"]


def test_many_new_failures_require_confirming_again(operator: Client, failing) -> None:
    url = f"{ASK}?all=1"
    form = form_of(operator, url)
    fail(make_watch(failing[0].app, "more"), RootCause.DNS)
    answer = operator.post(url, form, follow=True)
    assert "The selection has changed." in answer.text
    assert "This will retry 4 failing repositories" in answer.text
    assert retried() == []


def test_growth_over_ten_percent_requires_confirming_again(operator: Client, failing) -> None:
    url = ids(*failing)
    form = form_of(operator, url)
    AppRepository.objects.filter(pk=failing[0].pk).update(files_failing=4)
    assert "has changed" in operator.post(url, form, follow=True).text
    assert retried() == []


def test_changed_status_is_no_reason_to_confirm_again(operator: Client, failing) -> None:
    url = ids(*failing)
    form = form_of(operator, url)
    AppRepository.objects.filter(pk=failing[0].pk).update(status=Status.SCANNING)
    AppRepository.objects.filter(pk=failing[1].pk).update(failing_since=None, root_cause="", status=Status.SYNCED)
    operator.post(url, form)
    assert retried() == ["acme/docs → Portal", "acme/docs → Search"]


# --- Permissions --------------------------------------------------------------------------------------------------------


def test_retry_needs_its_permission(failing) -> None:
    viewer = staff("victor", *(f"view_{model}" for model in VIEWS), "resync_apprepository")
    for url in (LIST, WATCHES, f"{WATCHES}{failing[0].pk}/change/"):
        page = viewer.get(url).text
        assert "/retry/?next=" not in page, url
        assert 'value="retry"' not in page, url
    for url in (f"{WATCHES}{failing[0].pk}/retry/", f"{ASK}?all=1", f"{WATCHES}retry-failed/?all=1"):
        assert viewer.post(url, {"post": "yes"}).status_code == 403, url
    viewer.post(LIST, {"action": "retry", "_selected_action": [failing[0].pk]})
    assert retried() == []


def test_retry_permission_without_view_permission_is_refused(failing) -> None:
    client = staff("mallory", "retry_apprepository")
    for url in (f"{WATCHES}{failing[0].pk}/retry/", f"{ASK}?all=1"):
        assert client.post(url, {"post": "yes"}).status_code == 403
    assert retried() == []


def test_anonymous_is_redirected_to_login(client: Client, failing) -> None:
    for url in (f"{WATCHES}{failing[0].pk}/retry/", f"{ASK}?all=1"):
        assert client.post(url, {"post": "yes"}).url.startswith("/admin/login/")


def test_query_count_is_constant(operator: Client, failing, django_assert_max_num_queries) -> None:
    for number in range(40):
        fail(make_watch(make_app(f"App {number}"), f"many-{number}"), RootCause.DNS)
    with django_assert_max_num_queries(13):
        assert "and 33 more" in operator.get(f"{ASK}?all=1").text


# --- Its progress, its result, and cancelling it -------------------------------------------------------------------------


def test_retry_permission_covers_the_operation(failing) -> None:
    client = staff("rita", "view_apprepository", "retry_apprepository")
    operation = retry_all(Actor.system())
    assert "0 of 3 repositories" in client.get(f"/admin/progress/{operation.operation_id}/").text
    assert client.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/").status_code == 302
    operation.refresh_from_db()
    assert operation.cancelled_by == "rita"


def test_resync_permission_does_not_cancel_a_retry(failing) -> None:
    client = staff("robert", "view_apprepository", "view_bulkoperation", "resync_apprepository")
    operation = retry_all(Actor.system())
    assert client.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/").status_code == 403
    assert "Cancel" not in client.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text
    assert len(retried()) == 3


def test_cancelled_retry_shows_what_still_fails(operator: Client, failing) -> None:
    operation = retry_all(Actor.system())
    first, second, _ = operation.runs.order_by("watch")
    now = timezone.now()
    SyncRun.objects.filter(pk=first.pk).update(outcome=Outcome.SUCCEEDED, ended_at=now, started_at=now, files_done=3)
    SyncRun.objects.filter(pk=second.pk).update(started_at=now, files_done=4, files_total=9)
    answer = operator.post(f"/admin/deliveries_app/bulkoperation/{operation.pk}/cancel/", follow=True)
    assert (
        "Cancelled by olga. 1 repository succeeded before that; acme/site → Portal stopped after 4 of 9 files; "
        "1 had not started. Repositories whose retry was cancelled are synced again later."
    ) in answer.text


def test_operation_links_to_its_failures_and_their_retry(operator: Client, failing) -> None:
    operation = retry_all(Actor.system())
    now = timezone.now()
    SyncRun.objects.filter(watch=failing[0]).update(outcome=Outcome.SUCCEEDED, ended_at=now, started_at=now)
    SyncRun.objects.exclude(watch=failing[0]).update(outcome=Outcome.FAILED, ended_at=now, started_at=now)
    BulkOperation.objects.update(ended_at=now)
    page = operator.get(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/").text
    assert f'{LIST}?operation={operation.pk}">See what is still failing' in page
    url = f"{ASK}?all=1&operation={operation.pk}"
    assert url.replace("&", "&amp;") in page or url in page
    assert "This will retry 2 failing repositories for 2 apps." in operator.get(url).text
    operator.post(url, form_of(operator, url))
    assert retried() == ["acme/site → Portal", "acme/docs → Search"]


def test_single_retry_is_cancelled_on_the_watch_page(operator: Client, failing) -> None:
    operator.post(f"{WATCHES}{failing[0].pk}/retry/")
    page = operator.get(f"{WATCHES}{failing[0].pk}/change/").text
    assert f"/admin/deliveries_app/apprepository/{failing[0].pk}/cancel/" in page
    assert "progress-retry" in page
    answer = operator.post(f"/admin/deliveries_app/apprepository/{failing[0].pk}/cancel/", follow=True)
    assert "Retry cancelled. Docora tries again in 5 min." in answer.text
    watch = AppRepository.objects.get(pk=failing[0].pk)
    assert (watch.status, watch.is_failing) == (Status.FAILED, True)
    answer = operator.post(f"/admin/deliveries_app/apprepository/{failing[0].pk}/cancel/", follow=True)
    assert "There is nothing to cancel." in answer.text
