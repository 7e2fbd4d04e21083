"""Open circuits in the admin: their explanation and the reset button."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries_app.admin import repositories
from deliveries_app.models import AppRepository, Status
from repositories_app.models import Repository
from tests.support.audit import by_users
from tests.support.staff import make_watch, staff

LIST = "/admin/repositories_app/repository/"
WATCHES = "/admin/deliveries_app/apprepository/"
SEES = ("view_repository", "view_apprepository", "view_app")


@pytest.fixture
def broken(watches: list[AppRepository]) -> list[AppRepository]:
    """Every repository has failed five times, and nothing is due for half an hour."""
    later = timezone.now() + timedelta(minutes=30)
    Repository.objects.update(
        consecutive_failures=5,
        circuit_open_until=later,
        last_failure_at=timezone.now(),
        last_error="git could not read the repository: <b>502</b>.",
        last_error_cause="network",
    )
    AppRepository.objects.update(next_sync_at=later)
    return watches


@pytest.fixture
def mender(db) -> Client:
    return staff("mara", *SEES, "retry_apprepository")


def open_circuits() -> int:
    return Repository.objects.exclude(circuit_open_until=None).count()


def test_both_pages_explain_an_open_circuit(mender: Client, broken) -> None:
    page = mender.get(f"{LIST}{broken[0].repository_id}/change/").text
    assert "5 consecutive failures" in page
    assert "git could not read the repository: &lt;b&gt;502&lt;/b&gt;." in page
    assert "Once it has recovered, retry now." in page
    assert "Reset circuit" in page
    assert "Reset circuit" in mender.get(f"{WATCHES}{broken[0].pk}/change/").text
    assert "open, next try" in mender.get(f"{LIST}?circuit=open").text


def test_reset_button_closes_the_circuit_and_schedules_every_watch(mender: Client, broken) -> None:
    watch = broken[0]
    back = f"{WATCHES}{watch.pk}/change/"
    page = mender.post(f"{LIST}{watch.repository_id}/reset-circuit/?next={back}", follow=True)
    assert page.redirect_chain == [(back, 302)]
    assert "Circuit reset. Retry queued for 2 apps." in page.text
    assert "Reset circuit" not in page.text
    watch.repository.refresh_from_db()
    assert (watch.repository.consecutive_failures, watch.repository.circuit_open_until) == (0, None)
    due = AppRepository.objects.filter(next_sync_at__lte=timezone.now())
    assert {due_watch.pk for due_watch in due} == {broken[0].pk, broken[2].pk}
    entry = by_users().get()
    assert (entry.actor, entry.message) == ("mara", "Reset the circuit")
    assert "Reset the circuit" in mender.get(f"{LIST}{watch.repository_id}/history/").text


def test_reset_of_a_circuit_without_waiting_watches(mender: Client, broken) -> None:
    AppRepository.objects.update(ended_at=timezone.now())
    page = mender.post(f"{LIST}{broken[0].repository_id}/reset-circuit/", follow=True)
    assert "Circuit reset.</li>" in page.text


def test_action_resets_selected_or_all_circuits(mender: Client, broken) -> None:
    chosen = {"action": "reset_circuits", "_selected_action": [broken[0].repository_id]}
    assert "Circuit reset. Retry queued for all affected repositories." in mender.post(LIST, chosen, follow=True).text
    assert open_circuits() == 1
    Repository.objects.update(circuit_open_until=timezone.now() + timedelta(minutes=5))
    assert "2 circuits reset." in mender.post(LIST, chosen | {"select_across": "1"}, follow=True).text
    assert open_circuits() == 0


def test_resetting_many_takes_a_constant_number_of_queries(mender: Client, broken) -> None:
    def queries(number: int) -> int:
        for name in range(number):
            make_watch(broken[0].app, f"many-{number}-{name}")
        Repository.objects.update(consecutive_failures=5, circuit_open_until=timezone.now() + timedelta(minutes=5))
        AppRepository.objects.update(status=Status.FAILED)
        chosen = {"action": "reset_circuits", "_selected_action": [broken[0].repository_id], "select_across": "1"}
        with CaptureQueriesContext(connection) as asked:
            assert mender.post(LIST, chosen).status_code == 302
        assert not Repository.objects.exclude(circuit_open_until=None, consecutive_failures=0).exists()
        assert not AppRepository.objects.filter(status=Status.FAILED).exists()
        return len(asked)

    assert queries(0) == queries(20)


def test_closed_circuit_is_not_reset(mender: Client, watches) -> None:
    chosen = {"action": "reset_circuits", "_selected_action": [watch.repository_id for watch in watches]}
    assert "The selection has no circuits to reset." in mender.post(LIST, chosen, follow=True).text
    page = mender.post(f"{LIST}{watches[0].repository_id}/reset-circuit/", follow=True).text
    assert "The circuit is already closed." in page
    assert not by_users().exists()


def test_page_links_to_all_watches_if_some_are_not_listed(mender: Client, watches, monkeypatch) -> None:
    page = f"{LIST}{watches[0].repository_id}/change/"
    assert "See all" not in mender.get(page).text
    monkeypatch.setattr(repositories, "LISTED_WATCHES", 1)
    all_of_it = f"{WATCHES}?q={watches[0].repository.repository_id}"
    assert f'<a href="{all_of_it}">See all 2</a>' in mender.get(page).text
    assert mender.get(all_of_it).context["cl"].result_count == 2


def test_get_closes_nothing(mender: Client, broken) -> None:
    assert mender.get(f"{LIST}{broken[0].repository_id}/reset-circuit/").status_code == 405
    mender.get(f"{LIST}?action=reset_circuits&_selected_action={broken[0].repository_id}")
    assert open_circuits() == 2


@pytest.mark.parametrize("permissions", [SEES, ("retry_apprepository",), (*SEES, "resync_apprepository")])
def test_forged_post_without_permission_is_refused(broken, permissions: tuple[str, ...]) -> None:
    client = staff("mallory", *permissions)
    assert client.post(f"{LIST}{broken[0].repository_id}/reset-circuit/").status_code == 403
    client.post(LIST, {"action": "reset_circuits", "_selected_action": [broken[0].repository_id]})
    assert open_circuits() == 2
    for url in (f"{LIST}{broken[0].repository_id}/change/", f"{WATCHES}{broken[0].pk}/change/"):
        assert "reset-circuit" not in client.get(url).text


def test_no_reset_button_without_failures(mender: Client, watches) -> None:
    assert "Reset circuit" not in mender.get(f"{LIST}{watches[0].repository_id}/change/").text
    assert mender.post(f"{LIST}999999/reset-circuit/").status_code == 302


def test_reset_button_needs_the_view_permission(broken) -> None:
    client = staff("olga", "view_apprepository", "retry_apprepository")
    page = client.get(f"{WATCHES}{broken[0].pk}/change/").text
    assert LIST not in page
    assert "acme/docs" in page
