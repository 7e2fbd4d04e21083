"""A confirmation covers the selection it showed. Other repositories or many more files require confirming again."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.admin import confirmation
from deliveries_app.models import App, AppRepository, BulkOperation, Outcome, Status, SyncRun
from deliveries_app.reports.impact import impact_of
from repositories_app.models import Snapshot
from tests.support import admin_pages
from tests.support.staff import make_watch

WATCHES = "/admin/deliveries_app/apprepository/"
APPS = "/admin/deliveries_app/app/"
ALL = f"{WATCHES}force-resync/?all=1"
EVERYTHING_OF_AN_APP = f"{APPS}force-resync/?ids="


def form_of(client: Client, url: str) -> dict[str, list[str]]:
    """Return what the page's button would post, without starting with one repository."""
    return admin_pages.form_of(client, url) | {"canary": []}


def generations() -> list[int]:
    return list(AppRepository.objects.order_by("pk").values_list("generation", flat=True))


def test_unchanged_selection_is_resynced(operator: Client, watches) -> None:
    operator.post(ALL, form_of(operator, ALL))
    assert generations() == [2, 2, 2]


def test_refreshed_page_has_the_same_form(operator: Client, watches) -> None:
    first = form_of(operator, ALL)
    assert form_of(operator, ALL) | {"csrfmiddlewaretoken": ""} == first | {"csrfmiddlewaretoken": ""}


def test_synced_repository_without_files_sends_none(operator: Client, watches) -> None:
    """All of them are excluded. Before the first sync, the number is that of the repository."""
    Snapshot.objects.create(
        repository=watches[0].repository, commit_sha="c" * 40, branch="main", file_count=7, total_bytes=70
    )
    AppRepository.objects.update(tree_files=0, tree_bytes=0)
    assert impact_of(AppRepository.objects.filter(pk=watches[0].pk)).files == 7
    AppRepository.objects.update(last_commit="c" * 40)
    assert impact_of(AppRepository.objects.filter(pk=watches[0].pk)).files == 0


@pytest.mark.parametrize("how", [{}, {"canary": "on"}], ids=["at once", "canary"])
def test_resync_before_the_first_sync_begins_with_the_files_of_the_confirmation(operator: Client, watches, how) -> None:
    """The page said that 21 files would be sent, and the operation began with 0."""
    for watch in {watch.repository_id: watch for watch in watches}.values():
        Snapshot.objects.create(
            repository=watch.repository, commit_sha="c" * 40, branch="main", file_count=7, total_bytes=70
        )
    AppRepository.objects.update(tree_files=0, tree_bytes=0, last_commit="")
    assert impact_of(AppRepository.objects.all()).files == 21
    operator.post(ALL, form_of(operator, ALL) | how)
    operation = BulkOperation.objects.get()
    totals = [run.files_total for run in operation.runs.all()] + [row.files for row in operation.pending.all()]
    assert totals == [7, 7, 7]


def test_estimate_uses_the_newest_snapshot_and_recent_runs_of_these_apps(watches) -> None:
    now = timezone.now()
    for files in (7, 9):
        Snapshot.objects.create(
            repository=watches[0].repository, commit_sha=f"{files}", branch="main", file_count=files, total_bytes=70
        )
    AppRepository.objects.update(tree_files=0)
    ended = {"started_at": now - timedelta(seconds=10), "ended_at": now, "outcome": Outcome.SUCCEEDED, "generation": 1}
    SyncRun.objects.create(watch=watches[0], files_done=30, **ended)
    SyncRun.objects.create(watch=watches[2], files_done=1, **ended)
    old = SyncRun.objects.create(watch=watches[0], files_done=1, **ended)
    SyncRun.objects.filter(pk=old.pk).update(created_at=now - timedelta(days=8))
    impact = impact_of(AppRepository.objects.filter(pk=watches[0].pk))
    assert (impact.files, impact.seconds) == (9, 3.0)


def test_added_repository_requires_confirming_again(operator: Client, watches) -> None:
    form = form_of(operator, ALL)
    make_watch(watches[0].app, "wiki")
    answer = operator.post(ALL, form, follow=True)
    assert answer.redirect_chain == [(ALL, 302)]
    assert confirmation.CHANGED in answer.text
    assert "Re-sync 4 repositories" in answer.text
    assert not SyncRun.objects.exists()
    operator.post(ALL, form_of(operator, ALL))
    assert generations() == [2, 2, 2, 2]


def test_removed_repository_requires_confirming_again(operator: Client, watches) -> None:
    url = f"{EVERYTHING_OF_AN_APP}{watches[0].app_id}"
    form = form_of(operator, url)
    watches[1].delete()
    assert confirmation.CHANGED in operator.post(url, form, follow=True).text
    assert generations() == [1, 1]


def test_replaced_repository_requires_confirming_again(operator: Client, watches) -> None:
    form = form_of(operator, ALL)
    watches[1].delete()
    make_watch(watches[0].app, "wiki")
    assert confirmation.CHANGED in operator.post(ALL, form, follow=True).text
    assert generations() == [1, 1, 1]


@pytest.mark.parametrize(("files", "asks"), [(90, False), (130, False), (131, True), (400, True)])
def test_growth_over_ten_percent_requires_confirming_again(operator: Client, watches, files: int, asks: bool) -> None:
    form = form_of(operator, ALL)  # 300 files
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=files)
    assert (confirmation.CHANGED in operator.post(ALL, form, follow=True).text) is asks
    assert generations() == ([1, 1, 1] if asks else [2, 2, 2])


def test_first_files_require_confirming_again(operator: Client, watches) -> None:
    AppRepository.objects.update(tree_files=0)
    form = form_of(operator, ALL)
    AppRepository.objects.filter(pk=watches[0].pk).update(tree_files=1)
    assert confirmation.CHANGED in operator.post(ALL, form, follow=True).text


@pytest.mark.parametrize("status", Status.values)
def test_changed_status_is_no_reason_to_confirm_again(operator: Client, watches, status: str) -> None:
    form = form_of(operator, ALL)
    AppRepository.objects.update(status=status, files_failing=3, last_error="It did not answer.")
    App.objects.update(down_count=2)
    operator.post(ALL, form)
    assert generations() == [2, 2, 2]


@pytest.mark.parametrize("files", ["", "many", "-1", "9" * 40])
def test_invalid_file_count_requires_confirming_again(operator: Client, watches, files: str) -> None:
    answer = operator.post(ALL, form_of(operator, ALL) | {"selection_files": files}, follow=True)
    assert (confirmation.CHANGED in answer.text) is not files.isdecimal()
