"""Checks for differences in the admin and on the command line: request, follow, send, cancel."""

import io
import json
import re
import time
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.management import progress
from deliveries_app.models import App, AppRepository, Delivery, DriftCheck, DriftFile, DriftKind, DriftState
from deliveries_app.models.deliveries import Kind
from deliveries_app.reports.drift import summary
from deliveries_app.scheduling import request_sync
from deliveries_app.services import cancel_sync
from tests.deliveries.test_drift import FILES, damage
from tests.support.commands import run
from tests.support.staff import staff
from tests.support.world import World

CHECKS, WATCHES, APPS = (f"/admin/deliveries_app/{name}/" for name in ("driftcheck", "apprepository", "app"))
COMMIT = "c" * 40


@pytest.fixture
def opted_in(watches: list[AppRepository]) -> list[AppRepository]:
    """The watches, synced, of apps that answer /verify."""
    App.objects.update(answers_verify=True)
    AppRepository.objects.update(last_commit=COMMIT)
    for watch in watches:
        watch.refresh_from_db()
    return watches


@pytest.fixture
def result(opted_in: list[AppRepository]) -> DriftCheck:
    """A check of the first watch that found one file of each kind among 402."""
    now = timezone.now()
    watch = opted_in[0]
    check = DriftCheck.objects.create(
        watch=watch, requested_by="anna", state=DriftState.DIFFERS, ended_at=now, commit_sha=COMMIT, compared=402,
        missing=1, different=1, extra=1, listed=3,
    )  # fmt: skip
    for number, kind in enumerate(DriftKind):
        path, extra = f"{kind}/<b>.md", kind == DriftKind.EXTRA
        DriftFile.objects.create(check_of=check, path=path, kind=kind, sha="a" * 64, sequence=None if extra else number)
        if not extra:
            Delivery.objects.create(
                watch=watch, path=path, mode="100644", kind=Kind.CREATE, sha="b" * 64, size=5, sequence=number,
                generation=1, acknowledged=True, acknowledged_sha="b" * 64, updated_at=now,
            )  # fmt: skip
    return check


def text_of(answer) -> str:
    return " ".join(re.sub("<[^>]*>", " ", answer.content.decode()).split())


def test_check_of_a_watch_is_requested_and_cancelled(operator: Client, opted_in: list[AppRepository]) -> None:
    watch = opted_in[0]
    page = operator.get(f"{WATCHES}{watch.pk}/change/")
    assert f'action="{WATCHES}{watch.pk}/check/"' in page.text
    assert operator.get(f"{WATCHES}{watch.pk}/check/").status_code == 405
    answer = operator.post(f"{WATCHES}{watch.pk}/check/", follow=True)
    check = DriftCheck.objects.get()
    assert answer.request["PATH_INFO"] == f"{CHECKS}{check.pk}/change/"
    assert "Queued No worker is free yet." in text_of(answer)
    assert f'hx-get="/admin/live/checks/{check.pk}/' in answer.text
    assert (check.watch, check.requested_by, check.state) == (watch, "anna", DriftState.QUEUED)
    cancel_sync(Actor.command(), watch)
    assert "Queued The repository&#x27;s next sync is scheduled for later." in text_of(
        operator.get(answer.request["PATH_INFO"])
    )
    request_sync(AppRepository.objects.filter(pk=watch.pk))
    watch.refresh_from_db()
    assert watch.next_sync_at is not None
    assert 'id="drift-link"' in operator.get(f"/admin/live/watch/{watch.pk}/").text
    assert "Check cancelled." in operator.post(f"{CHECKS}{check.pk}/cancel/", follow=True).text
    fragment = operator.get(f"/admin/live/checks/{check.pk}/")
    assert "Cancelled by anna." in fragment.text
    assert "hx-get" not in fragment.text  # the poll ends
    late = operator.post(f"{CHECKS}{check.pk}/cancel/", follow=True)
    assert '<li class="warning">The check had already ended.</li>' in late.text


def test_check_of_an_app_covers_its_repositories(operator: Client, opted_in: list[AppRepository]) -> None:
    portal = opted_in[0].app
    AppRepository.objects.filter(pk=opted_in[1].pk).update(last_commit="")  # never synced
    assert f'action="{APPS}{portal.pk}/check/"' in operator.get(f"{APPS}{portal.pk}/change/").text
    answer = operator.post(f"{APPS}{portal.pk}/check/", follow=True)
    assert "Check of 1 repository requested." in answer.text
    assert [check.watch for check in DriftCheck.objects.all()] == [opted_in[0]]
    assert "acme/docs" in answer.text
    pk = DriftCheck.objects.get().pk
    poll = f"/admin/live/checks/?ids={pk}"
    assert "hx-get" in operator.get(poll).text
    DriftCheck.objects.all().delete()  # with its watch
    gone = operator.get(poll).text
    assert "No longer watched" in gone
    assert f'<span id="drift-summary-{pk}" hx-swap-oob="true"></span>' in gone  # it said what the check was waiting for


def test_no_button_without_the_apps_consent(operator: Client, watches: list[AppRepository]) -> None:
    AppRepository.objects.update(last_commit=COMMIT)
    page = operator.get(f"{WATCHES}{watches[0].pk}/change/")
    assert "/check/" not in page.text
    assert "if the app answers /verify" in text_of(page).replace("  ", " ")
    assert "/check/" not in operator.get(f"{APPS}{watches[0].app_id}/change/").text
    answer = operator.post(f"{WATCHES}{watches[0].pk}/check/", follow=True)
    assert "Checks for differences are turned off for Portal." in answer.text
    assert not DriftCheck.objects.exists()


def test_viewer_sees_results_and_no_buttons(viewer: Client, result: DriftCheck) -> None:
    page = viewer.get(f"{CHECKS}{result.pk}/change/")
    assert "3 of 402 files differ" in text_of(page)
    for path in (f"{WATCHES}{result.watch_id}/check/", f"{CHECKS}{result.pk}/send/", f"{CHECKS}{result.pk}/cancel/"):
        assert path not in page.text
        assert viewer.post(path).status_code == 403
    assert "/check/" not in viewer.get(f"{WATCHES}{result.watch_id}/change/").text
    assert staff("nobody").get(f"{CHECKS}{result.pk}/change/").status_code == 403
    assert Client().get(f"/admin/live/checks/{result.pk}/").status_code == 401


def test_result_is_listed_filtered_and_sent(operator: Client, result: DriftCheck) -> None:
    page = operator.get(f"{CHECKS}{result.pk}/change/")
    text = text_of(page)
    assert "Differences found 3 of 402 files differ" in text
    assert "All 3 1 missing 1 different 1 extra" in text
    assert "extra/&lt;b&gt;.md" in page.text
    assert "hx-get" not in page.text.partition('id="content-main"')[2]
    only = operator.get(f"{CHECKS}{result.pk}/change/?kind=extra")
    assert ("extra/&lt;b&gt;.md" in only.text, "missing/&lt;b&gt;.md" in only.text) == (True, False)
    assert "3 of 402 files differ" in operator.get(f"{WATCHES}{result.watch_id}/change/").text

    question = operator.get(f"{CHECKS}{result.pk}/send/")
    assert "Fix 3 differences" in question.text
    assert "2 files of acme/docs will be sent to Portal again." in question.text
    assert "will get a delete for 1 file that is not in the repository." in question.text
    assert "Files whose path differs from one of these only in case" in question.text
    assert "Files whose path differs from that of an extra one only in case" in operator.get("/docs/operations/").text
    DriftFile.objects.create(check_of=result, path="gone", kind=DriftKind.DIFFERENT, sha="a" * 64, sequence=9)
    DriftCheck.objects.update(different=2, listed=4)
    answer = operator.post(f"{CHECKS}{result.pk}/send/", {"post": "yes"}, follow=True)
    message = "Sending 2 files and deleting 1 extra file. Skipped 1 file that changed after the check."
    assert message in answer.text
    assert dict(Delivery.objects.filter(acknowledged=False).values_list("path", "kind")) == {
        "missing/<b>.md": "create", "different/<b>.md": "create", "extra/<b>.md": "delete",
    }  # fmt: skip
    assert "Sent just now by anna" in text_of(answer)
    assert f'hx-get="/admin/live/checks/{result.pk}/' in answer.text  # until the run has ended
    assert f"{CHECKS}{result.pk}/send/" not in answer.text
    again = operator.get(f"{CHECKS}{result.pk}/send/", follow=True)
    assert "These differences have already been sent." in again.text


def test_differences_of_a_paused_app_are_sent_when_it_is_resumed(operator: Client, result: DriftCheck) -> None:
    App.objects.update(paused=True)
    answer = operator.post(f"{CHECKS}{result.pk}/send/", {"post": "yes"}, follow=True)
    assert "deleting 1 extra file. The sync starts when the app is resumed." in answer.text


def test_command_prints_what_the_page_shows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.app.answers_verify = True
    world.app.save()
    _, watch = world.watch(FILES)
    ids = [world.app.app_id, watch.repository.repository_id]
    with pytest.raises(CommandError, match="has not been synced yet"):
        run("drift", *ids)
    world.settle()
    with pytest.raises(CommandError, match="Not finished after 0 seconds"):
        run("drift", *ids, "--timeout", "0")
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: world.settle())
    monkeypatch.setattr(progress, "time", clock)
    assert run("drift", *ids) == "acme/widgets: No differences. 9 files compared\n"
    damage(world, watch)
    printed: dict[int, str] = {}
    for options in ([world.app.app_id], [*ids, "--json"]):
        with pytest.raises(CommandError, match="1 of 1 copy differs or") as found:
            call_command("drift", *options, stdout=(out := io.StringIO()))
        assert found.value.returncode == 1
        printed[len(options)] = out.getvalue()
    assert printed[1].splitlines() == [
        "acme/widgets: Differences found. 5 of 11 files differ",
        "  missing    1.txt", "  different  3.txt", "  extra      docs/new.md", "  missing    docs/é.md", "  extra      extra",
    ]  # fmt: skip
    fields = json.loads(printed[3])
    assert (fields["state"], fields["message"], fields["compared"]) == ("differs", "5 of 11 files differ", 11)
    assert (fields["missing"], fields["different"], fields["extra"]) == (2, 1, 2)
    assert fields["files"][0] == {"path": "1.txt", "difference": "missing", "sha": None}


def test_button_that_only_deletes_says_so(operator: Client, result: DriftCheck) -> None:
    for missing, extra, listed, label in (
        (0, 1, 1, "Delete this extra file"),
        (0, 2, 2, "Delete these 2 extra files"),
        (1, 0, 1, "Fix this difference"),
        (1, 1, 2, "Fix 2 differences"),
    ):
        DriftCheck.objects.update(missing=missing, different=0, extra=extra, listed=listed)
        for page in ("change", "send"):
            assert label in operator.get(f"{CHECKS}{result.pk}/{page}/").text


@pytest.mark.parametrize(
    ("state", "missing", "expected"),
    [
        (DriftState.DIFFERS, 1, "1 of 1,200 files differs"),
        (DriftState.DIFFERS, 2, "2 of 1,200 files differ"),
        (DriftState.EQUAL, 0, "1,200 files compared"),
        (DriftState.CHECKING, 0, "Comparing the app's files…"),
    ],
)
def test_summary_of_a_check(state: DriftState, missing: int, expected: str) -> None:
    assert summary(DriftCheck(state=state, compared=1200, missing=missing)) == expected
