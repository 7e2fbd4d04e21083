"""A watch in the admin: its token, push hook, ignore patterns and left-out files."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    DeliveryFailure,
    FailureKind,
    Notice,
    NoticeKind,
    RootCause,
    Status,
    SyncRun,
)
from deliveries_app.progress.runs import open_run
from deliveries_app.reports.next_attempt import NextAttempt, next_attempt_of
from deliveries_app.scheduling import request_sync
from deliveries_app.services import retry_single
from deliveries_app.services.watch_settings import renew_push_secret
from repositories_app.models import HostOutage
from tests.support.admin_pages import posted_form, superuser
from tests.support.audit import by_users
from tests.support.staff import fail, make_app, make_watch, staff
from tests.support.world import World

WATCHES = "/admin/deliveries_app/apprepository/"
PAGES = ("token", "ref", "push-secret", "patterns", "app-patterns")
DATA = {"github_token": "ghp_forged", "ref": "forged", "ignore_patterns": "*", "include_patterns": "*", "post": "yes"}


@pytest.fixture
def keeper(db) -> Client:
    return staff("karla", "view_apprepository", "change_apprepository")


@pytest.fixture
def watch(db) -> AppRepository:
    return make_watch(make_app("Portal"), "docs")


def page_of(client: Client, watch: AppRepository) -> str:
    return client.get(f"{WATCHES}{watch.pk}/change/").text


def test_token_is_checked_before_saving_and_never_shown(world: World, keeper: Client) -> None:
    repo = world.git.repo("acme/private", {"a.txt": b"1"}, token="old-token")
    watch = world.sync(world.watch_url(repo, token="old-token"))
    world.git.tokens["acme/private"] = {"new-token"}
    url = f"{WATCHES}{watch.pk}/token/"
    assert "old-token" not in keeper.get(url).text
    refused = keeper.post(url, {"github_token": "bad-token"})
    assert "The git host rejected the token" in refused.text
    assert "bad-token" not in refused.text
    assert "spaces" in keeper.post(url, {"github_token": "with space"}).text
    watch.refresh_from_db()
    assert watch.github_token == "old-token"
    done = keeper.post(url, {"github_token": "new-token"}, follow=True)
    assert "Token saved" in done.text
    assert "new-token" not in done.text
    watch.refresh_from_db()
    assert watch.github_token == "new-token"
    assert world.sync(watch).status == "synced"


def test_token_page_says_whether_a_token_is_stored(keeper: Client, watch: AppRepository) -> None:
    stored = keeper.get(f"{WATCHES}{watch.pk}/token/").text
    assert "Docora reads acme/docs for Portal with a stored token, which is never shown." in stored
    assert "This removes the stored token." in stored
    AppRepository.objects.update(github_token="")
    none_stored = keeper.get(f"{WATCHES}{watch.pk}/token/").text
    assert "Docora reads acme/docs for Portal as a public repository. No token is stored." in none_stored
    assert "This removes the stored token." not in none_stored


def test_public_repository_needs_no_token(world: World, keeper: Client) -> None:
    _, watch = world.watch()
    AppRepository.objects.update(github_token="old-token")
    assert "Token removed" in keeper.post(f"{WATCHES}{watch.pk}/token/", {"github_token": ""}, follow=True).text
    watch.refresh_from_db()
    assert watch.github_token == ""
    again = keeper.post(f"{WATCHES}{watch.pk}/token/", {"github_token": ""}, follow=True).text
    assert "No token is stored. A sync is queued." in again
    recorded = [entry.message for entry in by_users().order_by("pk")]
    assert recorded == ["Changed the repository's token", "Checked the repository without a token"]


def test_push_secret_is_shown_once_with_its_url(keeper: Client, watch: AppRepository, settings) -> None:
    settings.PUBLIC_URL = "https://docora.example"
    address = f"https://docora.example/api/hooks/push/{watch.repository.repository_id}"
    assert address in page_of(keeper, watch)
    assert "Create push hook secret" in page_of(keeper, watch)
    answer = keeper.post(f"{WATCHES}{watch.pk}/push-secret/", {"post": "yes"})
    watch.refresh_from_db()
    secret = watch.push_secret
    assert len(secret) >= 32
    assert secret not in str(dict(keeper.session))
    page = keeper.get(answer.url)
    assert secret in page.text
    assert address in page.text
    assert "no-store" in page.headers["Cache-Control"]
    assert secret not in keeper.get(answer.url, follow=True).text
    assert secret not in page_of(keeper, watch)
    assert "Rotate push hook secret" in page_of(keeper, watch)
    assert "stops working immediately" in keeper.get(f"{WATCHES}{watch.pk}/push-secret/").text
    answer = keeper.post(f"{WATCHES}{watch.pk}/push-secret/")
    watch.refresh_from_db()
    assert watch.push_secret != secret
    renew_push_secret(Actor.command(), watch)
    assert "Another request has replaced these credentials." in keeper.get(answer.url, follow=True).text


def test_newly_ignored_files_are_deleted_at_the_next_sync(world: World, keeper: Client) -> None:
    _, watch = world.watch({"a.txt": b"1", "drafts/b.txt": b"2"})
    world.settle()
    url = f"{WATCHES}{watch.pk}/patterns/"
    assert "deletes newly ignored files at the client" in keeper.get(url).text
    done = keeper.post(url, {"ignore_patterns": "# mine\r\ndrafts/\r\n"}, follow=True)
    assert "Patterns saved. A sync is queued." in done.text
    assert "drafts/" in done.text
    assert "No changes to save." in keeper.post(url, {"ignore_patterns": "# mine\ndrafts/"}, follow=True).text
    world.settle()
    assert set(world.copy(watch)) == {"a.txt"}
    assert "drafts/" in keeper.get(url).text


def test_saving_a_stale_page_keeps_the_branch_that_the_app_has_chosen(keeper: Client, watch: AppRepository) -> None:
    url = f"{WATCHES}{watch.pk}/ref/"
    stale = posted_form(keeper, url)
    AppRepository.objects.update(ref="v2")
    assert "No changes to save." in keeper.post(url, stale, follow=True).text
    watch.refresh_from_db()
    assert watch.ref == "v2"


def test_invalid_patterns_are_refused(keeper: Client, watch) -> None:
    page = keeper.post(f"{WATCHES}{watch.pk}/patterns/", {"ignore_patterns": "ok\n\x07bell"})
    assert page.status_code == 200
    assert "control character" in page.text
    assert "Fix the errors below" in page.text
    watch.refresh_from_db()
    assert watch.ignore_patterns == ""


def test_left_out_files_are_listed_by_cause(keeper: Client, watch: AppRepository) -> None:
    assert "<p>Unknown until the first sync.</p>" in page_of(keeper, watch)
    AppRepository.objects.update(last_commit="c" * 40)
    assert "All files are sent" in page_of(keeper, watch)
    AppRepository.objects.update(left_out={"symlink": 1, "ignored": 1200, "lfs_pointer": 2, "brand_new": 4})
    now = timezone.now()
    DeliveryFailure.objects.create(
        watch=watch, path_digest="0" * 64, path="a/<link>", kind=FailureKind.SKIPPED, cause="symlink",
        message="Symbolic links are not sent.", first_at=now, last_at=now,
    )  # fmt: skip
    page = page_of(keeper, watch)
    for expected in ("Symbolic links", "1,200", "Git LFS pointers", "Brand new", "a/&lt;link&gt;"):
        assert expected in page
    assert "Not delivered" not in page


def test_failing_watch_does_not_claim_that_all_files_are_sent(keeper: Client, watch: AppRepository) -> None:
    AppRepository.objects.update(last_commit="c" * 40)
    assert "None. All files are sent." in page_of(keeper, watch)
    fail(watch, RootCause.SERVER_ERROR, status=500)
    page = page_of(keeper, watch)
    assert "<p>None.</p>" in page
    assert "All files are sent." not in page


def test_failed_run_is_not_shown_as_the_state_after_a_sync_without_a_run(world: World) -> None:
    """A sync that has nothing to send has no run. Until there is another run, the page shows the last one."""
    _, watch = world.watch({"a.txt": b"1"})
    world.settle()
    keeper = superuser()
    world.git.server.on_request = lambda method, target: 403
    world.sync(watch)
    retry_single(Actor.command(), watch)
    assert world.sync(watch).status == "failed"
    assert 'data-outcome="failed"' in page_of(keeper, watch)
    world.git.server.on_request = None
    assert world.sync(watch).status == "synced"
    page = page_of(keeper, watch)
    assert re.search(r"· failed <time.*?</time> · synced <time", page)
    assert 'data-outcome="failed"' not in page


def test_run_that_succeeded_is_not_shown_as_the_state_of_a_failing_watch(world: World) -> None:
    """A check that fails has no run. Until there is another run, the page shows the last one."""
    _, watch = world.watch({"a.txt": b"1"})
    world.settle()
    keeper = superuser()
    progress = f'id="watch-progress-{watch.pk}"'
    box = page_of(keeper, watch).partition(progress)[2].partition("</div>")[0]
    assert 'data-outcome="succeeded"' in box
    assert "<progress" in box
    world.git.server.on_request = lambda method, target: 404
    request_sync(AppRepository.objects.all())
    assert world.sync(watch).is_failing
    box = page_of(keeper, watch).partition(progress)[2].partition("</div>")[0]
    assert 'data-outcome="failed"' in box
    assert "<progress" not in box
    assert re.search(r"· succeeded <time.*?</time> · failing for <time", box)


def test_next_check_of_a_failing_watch_is_no_later_than_its_next_try(keeper: Client, watch: AppRepository) -> None:
    """In the other states with a due time, the check comes after the sync that is due."""

    def next_check() -> str:
        [text] = re.findall("<dt>Next check</dt><dd>(.*?)</dd>", page_of(keeper, watch))
        return text

    fail(watch, RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    now = timezone.now().replace(microsecond=0)
    soon, later = now + timedelta(minutes=3), now + timedelta(minutes=4)
    for state in (Status.FAILED, Status.PENDING):  # PENDING: retrying
        AppRepository.objects.update(status=state, next_sync_at=later, next_check_at=soon)
        assert next_check() == f"{soon:%Y-%m-%d %H:%M:%S} UTC"
        AppRepository.objects.update(next_sync_at=soon, next_check_at=later)
        assert next_check() == f"{soon:%Y-%m-%d %H:%M:%S} UTC"
    AppRepository.objects.update(next_sync_at=now)
    assert next_check() == "after the next sync"
    AppRepository.objects.update(paused_at=now, next_sync_at=None)
    assert next_check() == "after it is resumed"
    App.objects.update(paused=False)
    AppRepository.objects.update(paused_at=None, arriving=True, next_sync_at=None)
    assert next_check() == "after its import"


def test_check_that_is_due_is_not_just_now(keeper: Client, watch: AppRepository) -> None:
    """The sweep makes it within seconds."""
    for seconds, shown in ((65, True), (-2, False)):
        AppRepository.objects.update(next_check_at=timezone.now() + timedelta(seconds=seconds))
        assert ("Next check <time" in page_of(keeper, watch)) == shown
        checked = AppRepository.objects.with_state().select_related("app", "repository").get()
        assert (next_attempt_of(checked) == NextAttempt("Next check is due")) != shown


def test_check_that_is_not_made_is_due_since_then(keeper: Client, watch: AppRepository) -> None:
    """While the sweep was stopped, the page planned the next check for a time in the past."""
    since = timezone.now() - timedelta(minutes=9)
    AppRepository.objects.update(next_check_at=since)
    [text] = re.findall("<dt>Next check</dt><dd>(.*?)</dd>", page_of(keeper, watch))
    assert text == f"due since {since:%Y-%m-%d %H:%M:%S} UTC"


def test_advice_for_a_git_host_that_answers_with_an_error(world: World) -> None:
    """The page said that the host is unreachable, too slow, or limits requests, beside the error that it returned HTTP 500."""
    _, watch = world.watch()
    world.git.server.on_request = lambda method, target: 500
    world.sync(watch)
    page = page_of(superuser(), watch)
    assert "The git host returned HTTP 500. Docora retries automatically." in page
    assert "Once it has recovered, retry now." in page
    assert "unreachable" not in page


def test_page_says_that_the_git_host_is_down(keeper: Client, watch: AppRepository) -> None:
    """Until its circuit opened, the repository seemed to be up to date, with a check a little later than usual."""
    assert "can't connect to the git host" not in page_of(keeper, watch)
    soon = timezone.now() + timedelta(minutes=5)
    HostOutage.objects.create(host="https://github.com/", since=timezone.now(), retry_at=soon, error="Down.")
    [text] = re.findall("<dt>Next check</dt><dd>(.*?)</dd>", page_of(keeper, watch))
    assert text == f"{soon:%Y-%m-%d %H:%M:%S} UTC, because Docora can't connect to the git host"


def test_run_shows_number_of_left_out_files(watch: AppRepository) -> None:
    run = open_run(watch, "change", requested_by="Docora")
    run.left_out = {"ignored": 1200, "submodule": 1, "lfs_pointer": 2}
    run.save()
    client = staff("victor", "view_syncrun", "view_apprepository")
    page = client.get(f"/admin/deliveries_app/syncrun/{SyncRun.objects.get().pk}/change/").text
    found = re.findall(
        r'<th scope="row">([^<]+)</th><td class="numeric">([\d,]+)<span class="on-phones"> files?</span></td>', page
    )
    assert found == [("Submodules", "1"), ("Ignored", "1,200"), ("Git LFS pointers", "2")]
    assert ">1201<" in page_of(client, watch).replace(",", "")


def test_waiting_notifications_are_listed(keeper: Client, watch: AppRepository) -> None:
    assert "Pending notifications" not in page_of(keeper, watch)
    due_at = timezone.now() + timedelta(minutes=3, seconds=5)
    Notice.objects.create(
        watch=watch,
        kind=NoticeKind.SYNC_FAILED,
        fields={},
        generation=1,
        due_at=due_at,
        last_error="The app returned HTTP 500.",
    )
    AppRepository.objects.update(next_sync_at=due_at)

    def listed() -> str:
        [table] = re.findall('<div id="pending-table".*?</table>', page_of(keeper, watch), re.DOTALL)
        return " ".join(re.sub("<[^>]*>", " ", table).split())

    assert "Pending notifications (1)" in page_of(keeper, watch)
    assert "Next sync in 3 min The app returned HTTP 500." in listed()
    Notice.objects.update(due_at=timezone.now() - timedelta(minutes=3))
    AppRepository.objects.update(next_sync_at=timezone.now() - timedelta(minutes=3))
    assert "Next sync when a worker is free" in listed()
    App.objects.update(paused=True)
    assert "Continues when the app is resumed" in listed()


@pytest.mark.parametrize("page", PAGES)
def test_get_changes_nothing(keeper: Client, watch: AppRepository, page: str) -> None:
    before = AppRepository.objects.values().get()
    assert keeper.get(f"{WATCHES}{watch.pk}/{page}/", DATA).status_code == 200
    assert AppRepository.objects.values().get() == before


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "permissions", [("view_apprepository", "resync_apprepository", "add_apprepository"), ("delete_apprepository",)]
)
def test_forged_post_without_permission_is_refused(watch, page: str, permissions: tuple[str, ...]) -> None:
    client = staff("mallory", *permissions)
    before = AppRepository.objects.values().get()
    for method in (client.get, client.post):
        assert method(f"{WATCHES}{watch.pk}/{page}/", DATA).status_code == 403
    assert AppRepository.objects.values().get() == before
    if "view_apprepository" in permissions:
        assert f"/{page}/" not in page_of(client, watch)


def test_ended_watch_has_no_pages(keeper: Client, watch: AppRepository) -> None:
    AppRepository.objects.update(ended_at=timezone.now())
    before = AppRepository.objects.values().get()
    for page in PAGES:
        assert keeper.post(f"{WATCHES}{watch.pk}/{page}/", DATA).status_code == 302
    assert AppRepository.objects.values().get() == before


def test_audit_log_names_the_user_and_no_secret(keeper: Client, watch: AppRepository) -> None:
    keeper.post(f"{WATCHES}{watch.pk}/push-secret/")
    keeper.post(f"{WATCHES}{watch.pk}/patterns/", {"ignore_patterns": "secret-plans/"})
    watch.refresh_from_db()
    assert by_users(actor="karla").count() == 2
    page = keeper.get(f"{WATCHES}{watch.pk}/history/").text
    assert watch.push_secret not in page
    assert "secret-plans" in page
