"""Force re-sync: permissions, the confirmation page, and the result."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Status, SyncRun
from docora.redis import queues
from tests.support.audit import by_users
from tests.support.staff import make_watch, staff

LIST = "/admin/deliveries_app/apprepository/"
CONFIRM = f"{LIST}force-resync/"


def choose(client: Client, url: str, action: str, *pks: int, **extra: str):
    return client.post(url, {"action": action, "_selected_action": list(pks), "index": "0", **extra})


def generations() -> list[int]:
    return list(AppRepository.objects.order_by("pk").values_list("generation", flat=True))


def test_confirmation_of_one_row(operator: Client, watches) -> None:
    answer = choose(operator, LIST, "force_resync", watches[0].pk)
    assert answer.status_code == 302
    assert answer.url.startswith(CONFIRM)
    page = operator.get(answer.url)
    assert (
        "This will re-sync acme/docs and re-send ALL files to Portal. This may trigger many notifications. Continue?"
        in page.text
    )
    assert "Warning" in page.text
    assert "100" in page.text
    assert generations() == [1, 1, 1]
    assert not SyncRun.objects.exists()


def test_confirmation_estimates_the_time_from_recent_runs(operator: Client, watches) -> None:
    now = timezone.now()
    for files, seconds in ((10, 60), (20, 30)):
        times = {"started_at": now - timedelta(seconds=seconds), "ended_at": now}
        SyncRun.objects.create(watch=watches[0], generation=1, outcome=Outcome.SUCCEEDED, files_done=files, **times)
    assert "At the recent rate, this takes about 5 min." in operator.get(f"{CONFIRM}?ids={watches[0].pk}").text
    AppRepository.objects.filter(pk=watches[1].pk).update(paused_at=now)  # nothing is sent for it before it is resumed
    assert "At the recent rate" not in operator.get(f"{CONFIRM}?ids={watches[0].pk},{watches[1].pk}").text


def test_number_of_files_is_unknown_before_the_first_sync(operator: Client, watches) -> None:
    """The page of a repository that was just imported said 0 files."""
    now = timezone.now()
    times = {"started_at": now - timedelta(seconds=60), "ended_at": now}
    SyncRun.objects.create(watch=watches[0], generation=1, outcome=Outcome.SUCCEEDED, files_done=10, **times)
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=0, tree_bytes=0, last_commit="")
    page = " ".join(operator.get(f"{CONFIRM}?ids={watches[0].pk}").text.split())
    assert '<td class="numeric">Unknown<' in page
    assert '<td class="numeric">Unknown number of files</td>' in page
    page += " ".join(operator.get(f"{CONFIRM}?ids={watches[0].pk},{watches[1].pk}").text.split())
    assert "plus 1 repository with an unknown number of files" in page
    assert "At the recent rate" not in page
    assert ">0" not in page
    with pytest.raises(CommandError, match=r"This will re-sync acme/docs for Portal and send ALL files again\."):
        call_command("resync", watches[0].app.app_id, watches[0].repository.repository_id)


def test_estimated_time_excludes_the_waits_between_attempts(operator: Client, watches) -> None:
    """One file was refused for hours. The page said that 100 files would take hours, too."""
    now = timezone.now()
    for attempts, hours in ((1, 1 / 60), (20, 5)):
        times = {"started_at": now - timedelta(hours=hours), "ended_at": now}
        SyncRun.objects.create(
            watch=watches[0], generation=1, outcome=Outcome.SUCCEEDED, files_done=20, attempts=attempts, **times
        )
    assert "At the recent rate, this takes about 5 min." in operator.get(f"{CONFIRM}?ids={watches[0].pk}").text


def test_confirming_one_row_redirects_to_its_operation(
    operator: Client, watches, django_capture_on_commit_callbacks
) -> None:
    url = choose(operator, f"{LIST}?q=docs", "force_resync", watches[0].pk).url
    with django_capture_on_commit_callbacks(execute=True):
        answer = operator.post(url, {"post": "yes", "reason": " lost its disk "}, follow=True)
    operation = BulkOperation.objects.get()
    assert answer.redirect_chain == [(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/", 302)]
    assert (operation.title, operation.app, operation.total) == ("Re-sync · acme/docs → Portal", watches[0].app, 1)
    assert "Re-sync of 1 repository requested." in answer.text
    assert "lost its disk" in answer.text
    assert generations() == [2, 1, 1]
    run = SyncRun.objects.get()
    assert (run.requested_by, run.reason, run.operation) == ("anna", "resync", operation)
    entry = by_users().get()
    assert (entry.actor, entry.subject_id, entry.run_id) == ("anna", str(watches[0].pk), run.run_id)
    assert (entry.message, entry.reason) == (f"Re-sync, {operation.operation_id}", "lost its disk")
    assert queues.job_ids("high") == [watches[0].job_id]


def test_confirming_several_rows_redirects_to_the_operation(operator: Client, watches) -> None:
    url = choose(operator, LIST, "force_resync", *(watch.pk for watch in watches)).url
    page = operator.get(url)
    assert (
        "This will re-sync 3 repositories for 2 apps. ALL files will be re-sent to the clients. Continue?" in page.text
    )
    assert "Danger" in page.text
    answer = operator.post(url, {"post": "yes"}, follow=True)
    operation = BulkOperation.objects.get()
    assert answer.redirect_chain == [(f"/admin/deliveries_app/bulkoperation/{operation.pk}/change/", 302)]
    assert "Re-sync of 3 repositories requested." in answer.text
    assert generations() == [2, 2, 2]
    assert by_users().count() == 3


def test_confirmation_can_be_refreshed_and_needs_post_yes(operator: Client, watches) -> None:
    url = choose(operator, LIST, "force_resync", watches[0].pk).url
    for answer in (operator.get(url), operator.get(url), operator.post(url, {})):
        assert answer.status_code == 200
        assert "Re-sync" in answer.text
    assert generations() == [1, 1, 1]


def test_confirmation_of_all_repositories_of_an_app(operator: Client, watches) -> None:
    url = choose(operator, "/admin/deliveries_app/app/", "resync_all_for_app", watches[0].app_id).url
    assert (
        "This will re-sync all 2 repositories for Portal. ALL files will be re-sent to the client. Continue?"
        in operator.get(url).text
    )
    operator.post(url, {"post": "yes"})
    assert BulkOperation.objects.get().app == watches[0].app
    assert generations() == [2, 2, 1]


def test_git_repository_resyncs_every_watching_app(operator: Client, watches) -> None:
    url = choose(operator, "/admin/repositories_app/repository/", "force_resync", watches[0].repository_id).url
    assert "2 repositories for 2 apps" in operator.get(url).text
    operator.post(url, {"post": "yes"})
    assert generations() == [2, 1, 2]


def test_select_across_keeps_the_filters(operator: Client, watches) -> None:
    url = choose(operator, f"{LIST}?q=docs", "force_resync", watches[0].pk, select_across="1").url
    assert "2 repositories for 2 apps" in operator.get(url).text
    operator.post(url, {"post": "yes"})
    assert generations() == [2, 1, 2]


def test_select_across_of_a_status_takes_only_matching_rows(operator: Client, watches) -> None:
    AppRepository.objects.filter(pk=watches[1].pk).update(status=Status.FAILED)
    url = choose(operator, f"{LIST}?state=failed", "force_resync", watches[1].pk, select_across="1").url
    operator.post(url, {"post": "yes"})
    assert generations() == [1, 2, 1]


@pytest.mark.parametrize("status", Status.values)
def test_resync_is_available_in_any_status(operator: Client, watches, status: str) -> None:
    AppRepository.objects.update(status=status, lease_until=timezone.now() + timedelta(seconds=20), fencing_token=3)
    page = operator.get(LIST)
    assert f"{CONFIRM}?ids={watches[0].pk}" in page.text
    operator.post(f"{CONFIRM}?ids={watches[0].pk}", {"post": "yes"})
    watch = AppRepository.objects.get(pk=watches[0].pk)
    assert (watch.generation, watch.resend_floor, watch.status) == (2, 2, Status.PENDING)


def test_confirmation_shows_syncing_and_waiting_watches(operator: Client, watches) -> None:
    soon = timezone.now() + timedelta(seconds=20)
    AppRepository.objects.filter(pk=watches[0].pk).update(status=Status.SCANNING, lease_until=soon)
    App.objects.filter(pk=watches[2].app_id).update(paused=True)
    page = operator.get(f"{CONFIRM}?ids={','.join(str(watch.pk) for watch in watches)}")
    assert "Syncing</span>" in page.text
    assert "1 repository is syncing right now and will start over." in page.text
    assert "Paused</span>" in page.text
    assert "1 repository is paused, or its app is. Nothing is sent for it until it is resumed." in page.text
    assert "300" in page.text


def test_resync_needs_its_permission(viewer: Client, watches) -> None:
    page = viewer.get(LIST)
    assert "force_resync" not in page.text
    assert "force-resync" not in page.text
    url = f"{CONFIRM}?ids={watches[0].pk}"
    assert viewer.get(url).status_code == 403
    assert viewer.post(url, {"post": "yes"}).status_code == 403
    choose(viewer, LIST, "force_resync", watches[0].pk)
    for other in (
        "/admin/deliveries_app/app/force-resync/?ids=1",
        "/admin/repositories_app/repository/force-resync/?ids=1",
    ):
        assert viewer.post(other, {"post": "yes"}).status_code == 403
    assert generations() == [1, 1, 1]


def test_resync_permission_without_view_permission_is_refused(watches) -> None:
    client = staff("mallory", "resync_apprepository")
    assert client.post(f"{CONFIRM}?ids={watches[0].pk}", {"post": "yes"}).status_code == 403
    assert generations() == [1, 1, 1]


def test_anonymous_is_redirected_to_login(client: Client, watches) -> None:
    answer = client.post(f"{CONFIRM}?ids={watches[0].pk}", {"post": "yes"})
    assert answer.status_code == 302
    assert answer.url.startswith("/admin/login/")


def test_post_without_csrf_token_is_refused(watches) -> None:
    User.objects.create_superuser("root", password="x")
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="root"))
    assert client.post(f"{CONFIRM}?ids={watches[0].pk}", {"post": "yes"}).status_code == 403
    assert generations() == [1, 1, 1]


@pytest.mark.parametrize("ids", ["", "0", "abc", "1;2", "9" * 30, "-1"])
def test_empty_selection_shows_a_warning(operator: Client, watches, ids: str) -> None:
    answer = operator.get(f"{CONFIRM}?ids={ids}", follow=True)
    assert "The selection has no repositories to re-sync." in answer.text


def test_next_url_stays_on_this_site(operator: Client, watches) -> None:
    answer = operator.get(f"{CONFIRM}?ids={watches[0].pk}&next=https://evil.example/")
    assert answer.context["back"] == LIST


def test_query_count_is_constant(operator: Client, watches, django_assert_max_num_queries) -> None:
    for number in range(40):
        make_watch(watches[0].app, f"many-{number}")
    with django_assert_max_num_queries(13):
        operator.get(f"{CONFIRM}?all=1")
