"""Requests by people while workers run, on PostgreSQL: all take locks in one order, so nothing deadlocks.

A worker locks its watch, then runs, then operations. A foreign key's check shares the app's row.
"""

import re
import threading
from collections.abc import Callable

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now
from django.test import Client

from deliveries_app import services
from deliveries_app.actors import Actor
from deliveries_app.admin import users
from deliveries_app.models import (
    App,
    AppRepository,
    AuditAction,
    AuditEntry,
    BulkOperation,
    HourlyTraffic,
    Outcome,
    SyncRun,
)
from deliveries_app.models.root_causes import RootCause
from deliveries_app.progress import runs
from deliveries_app.services import (
    cancel_operation,
    cancel_sync,
    delete_app,
    ensure_watched,
    resync_by_app,
    retry_by_app,
    unwatch_repository,
    watch_repository,
)
from deliveries_app.sweep import cleanup, head_checks
from deliveries_app.sync.claim import claim
from repositories_app.models import GitHubApp, Repository
from tests.docora.test_sign_in import code_of
from tests.support.admin_pages import posted_form, superuser
from tests.support.github_api import pem
from tests.support.processes import in_threads
from tests.support.receiver import wait_for
from tests.support.staff import make_app
from tests.support.world import World

COMMAND = Actor.command()


@pytest.fixture(autouse=True)
def _with_row_locks() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite locks no rows")


def waits_for_a_lock() -> bool:
    """Whether another connection waits for a row that this one, or a third one, has locked."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def test_app_is_deleted_while_a_worker_ends_its_bulk_resync(world: World) -> None:
    watches = [world.watch(name=f"acme/{number}")[1] for number in range(3)]
    operation = resync_by_app(COMMAND, world.app)
    last_is_locked = threading.Event()

    def end_the_last_run() -> None:
        last = watches[-1]
        with transaction.atomic():
            AppRepository.objects.filter(pk=last.pk).update(status="synced")
            last_is_locked.set()
            wait_for(waits_for_a_lock)
            runs.end_runs(last.pk, 2, Outcome.SUCCEEDED)

    def delete() -> None:
        assert last_is_locked.wait(10)
        delete_app(COMMAND, world.app)

    in_threads(end_the_last_run, delete)
    operation.refresh_from_db()
    assert operation.ended_at is not None
    assert sorted(SyncRun.objects.filter(operation=operation).values_list("outcome", flat=True)) == [
        Outcome.ENDED,
        Outcome.ENDED,
        Outcome.SUCCEEDED,
    ]
    assert not AppRepository.objects.alive().exists()


def test_cancelled_operation_is_audited_without_the_run_that_ends_meanwhile(world: World) -> None:
    watches = [world.watch(name=f"acme/{number}")[1] for number in range(3)]
    operation = resync_by_app(COMMAND, world.app)
    is_locked = threading.Event()

    def end_a_run() -> None:
        with transaction.atomic():
            AppRepository.objects.filter(pk=watches[0].pk).update(status="synced")
            is_locked.set()
            wait_for(waits_for_a_lock)
            runs.end_runs(watches[0].pk, 2, Outcome.SUCCEEDED)

    def cancel() -> int:
        assert is_locked.wait(10)
        return cancel_operation(COMMAND, operation)

    assert in_threads(end_a_run, cancel) == [None, 2]
    [entry] = AuditEntry.objects.filter(action=AuditAction.CANCEL)
    assert entry.message == "Cancelled with 2 repositories unfinished"


@pytest.mark.parametrize("page", ["/admin/auth/user/{}/delete/", "/admin/auth/user/"])
def test_user_is_deleted_while_a_worker_ends_the_last_run_of_a_bulk_resync(world: World, page: str) -> None:
    watches = [world.watch(name=f"acme/{number}")[1] for number in range(3)]
    anna = User.objects.create_superuser("anna")
    operation = resync_by_app(Actor.of_user(anna), world.app)
    assert set(SyncRun.objects.filter(operation=operation).values_list("user", flat=True)) == {anna.pk}
    root = superuser()
    last_is_locked = threading.Event()

    def end_the_last_run() -> None:
        last = watches[-1]
        with transaction.atomic():
            AppRepository.objects.filter(pk=last.pk).update(status="synced")
            list(SyncRun.objects.filter(watch=last).select_for_update(no_key=True))
            last_is_locked.set()
            wait_for(waits_for_a_lock)
            list(SyncRun.objects.select_for_update(no_key=True, nowait=True))  # the deletion keeps none of them locked
            runs.end_runs(last.pk, 2, Outcome.SUCCEEDED)

    def delete() -> None:
        assert last_is_locked.wait(10)
        form = {"action": "delete_selected", "_selected_action": anna.pk, "post": "yes"}
        assert root.post(page.format(anna.pk), form).status_code == 302

    in_threads(end_the_last_run, delete)
    assert not User.objects.filter(pk=anna.pk).exists()
    assert AuditEntry.objects.filter(action=AuditAction.USER_DELETED, subject="anna").count() == 1
    for rows in (SyncRun.objects.filter(operation=operation), BulkOperation.objects.all()):
        assert set(rows.values_list("requested_by", "user")) == {("anna", None)}


@pytest.mark.parametrize("page", ["auth/user/{}/delete/", "auth/user/", "repositories_app/githubapp/{}/delete/"])
def test_row_is_deleted_twice_at_once(transactional_db, page: str) -> None:
    """It was recorded twice."""
    clients = superuser("bert"), superuser("cleo")
    is_user = page.startswith("auth")
    row = User.objects.create_user("anna") if is_user else GitHubApp.objects.create(name="anna", app_id="1")
    form = {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"}
    is_deleted = threading.Event()

    def delete() -> None:
        with transaction.atomic():
            assert clients[0].post(f"/admin/{page}".format(row.pk), form).status_code == 302
            is_deleted.set()
            wait_for(waits_for_a_lock)

    def delete_again() -> None:
        assert is_deleted.wait(10)
        assert clients[1].post(f"/admin/{page}".format(row.pk), form).status_code == 302

    in_threads(delete, delete_again)
    assert not type(row).objects.filter(pk=row.pk).exists()
    action = AuditAction.USER_DELETED if is_user else AuditAction.GITHUB_APP_DELETED
    assert AuditEntry.objects.filter(action=action, subject="anna").count() == 1


def test_circuit_is_reset_twice_at_once(world: World) -> None:
    """It was recorded twice."""
    clients = superuser("bert"), superuser("cleo")
    repository = world.watch()[1].repository
    Repository.objects.update(consecutive_failures=5)
    page = f"/admin/repositories_app/repository/{repository.pk}/reset-circuit/"
    is_reset = threading.Event()

    def reset() -> None:
        with transaction.atomic():
            assert "Circuit reset." in clients[0].post(page, follow=True).text
            is_reset.set()
            wait_for(waits_for_a_lock)

    def reset_again() -> None:
        assert is_reset.wait(10)
        assert "The circuit is already closed." in clients[1].post(page, follow=True).text

    in_threads(reset, reset_again)
    assert AuditEntry.objects.filter(action=AuditAction.CIRCUIT_RESET).count() == 1


def test_user_is_deleted_and_changed_at_once(transactional_db) -> None:
    """Both lock superusers too. The form locks all rows in the order of their keys, so the deletion must do the same."""
    anna = User.objects.create_user("anna")
    client = superuser("bert")
    is_locked = threading.Event()

    def lock_as_the_form() -> None:
        with transaction.atomic():
            for name in ("anna", "bert"):
                User.objects.select_for_update(no_key=True).get(username=name)
                is_locked.set()
                wait_for(waits_for_a_lock)

    def delete() -> None:
        assert is_locked.wait(10)
        assert client.post(f"/admin/auth/user/{anna.pk}/delete/", {"post": "yes"}).status_code == 302

    in_threads(lock_as_the_form, delete)
    assert not User.objects.filter(username="anna").exists()


@pytest.mark.parametrize("page", ["change", "delete"])
def test_two_administrators_take_each_others_rights(transactional_db, monkeypatch, page: str) -> None:
    clients = {name: superuser(name) for name in ("anna", "bert")}
    pks = dict(User.objects.values_list("username", "pk"))
    passed: list[str] = []

    def blocked_reason(concerned: list[User]) -> str:
        reason = look(concerned)
        passed.append(reason)
        wait_for(lambda: len(passed) > 1 or waits_for_a_lock())
        return reason

    look = users._blocked_reason
    monkeypatch.setattr(users, "_blocked_reason", blocked_reason)

    def take_rights(name: str, other: str) -> None:
        form = {"username": other, "is_active": "on", "post": "yes"}
        clients[name].post(f"/admin/auth/user/{pks[other]}/{page}/", form)

    in_threads(lambda: take_rights("anna", "bert"), lambda: take_rights("bert", "anna"))
    assert User.objects.filter(is_superuser=True).count() == 1


@pytest.mark.parametrize("what", ["user", "authenticator app", "GitHub App", "password"])
def test_form_conflicts_with_another_request(transactional_db, what: str) -> None:
    """A double click, or what the form refers to is deleted meanwhile. It was a server error."""
    root = User.objects.create_superuser("root", password="x")
    client, again = superuser(), Client(SERVER_NAME="127.0.0.1")
    again.cookies = client.cookies
    app = make_app("Portal")
    github_app = GitHubApp.objects.create(name="Reader", app_id="1", private_key=pem())
    if what == "user":
        page, form = "/admin/auth/user/add/", {"username": "anna", "usable_password": "false"}
    elif what == "authenticator app":
        page = "/accounts/security/app/add/"
        form = {"code": code_of(re.search(r'id="totp-key">(\w+)<', client.get(page).text)[1])}
    elif what == "password":
        page = "/admin/password_change/"
        form = {"old_password": "x", "new_password1": "another-one-1", "new_password2": "another-one-1"}
    else:
        page = f"/admin/deliveries_app/app/{app.pk}/settings/"
        form = posted_form(client, page, github_app=str(github_app.pk))
    is_saved = threading.Event()

    def save() -> None:
        with transaction.atomic():
            if what == "GitHub App":
                github_app.delete()
            elif what == "password":
                root.delete()
            else:
                assert client.post(page, form).status_code == 302
            is_saved.set()
            wait_for(waits_for_a_lock)

    def conflict() -> None:
        assert is_saved.wait(10)
        answer = again.post(page, form)
        assert (answer.status_code, answer["Location"]) == (302, page)
        assert "Not saved: another request changed something" in again.get(page, follow=True).text

    in_threads(save, conflict)


@pytest.mark.parametrize("what", ["authenticator app", "passkey"])
def test_second_factor_is_removed_twice_at_once(transactional_db, what: str) -> None:
    """The second request removed and recorded it again."""
    client, again = superuser(), Client(SERVER_NAME="127.0.0.1")
    again.cookies = client.cookies
    root, page = User.objects.get(), "/accounts/security/app/remove/"
    Authenticator.objects.create(user=root, type="totp", data={})
    if what == "passkey":
        factor = Authenticator.objects.create(user=root, type="webauthn", data={"name": "Blue", "passwordless": True})
        page = f"/accounts/security/passkeys/{factor.pk}/remove/"
    is_removed = threading.Event()

    def remove() -> None:
        with transaction.atomic():
            assert client.post(page).status_code == 302
            is_removed.set()
            wait_for(waits_for_a_lock)

    def remove_again() -> None:
        assert is_removed.wait(10)
        answer = again.post(page)
        assert (answer.status_code, answer["Location"]) == (302, "/accounts/security/")

    in_threads(remove, remove_again)
    assert AuditEntry.objects.filter(action="user.second_factor_changed", message__startswith="Removed").count() == 1


def test_recovery_codes_of_a_user_who_is_being_deleted(transactional_db) -> None:
    """It was a server error."""
    client = superuser()
    root = User.objects.get()
    RecoveryCodes.activate(root)
    is_deleted = threading.Event()

    def delete() -> None:
        with transaction.atomic():
            root.delete()
            is_deleted.set()
            wait_for(waits_for_a_lock)

    def show() -> None:
        assert is_deleted.wait(10)
        assert client.get("/accounts/security/recovery-codes/").status_code == 403

    in_threads(delete, show)


def test_conflict_of_a_button_leads_back_to_its_page(db, monkeypatch) -> None:
    """It led to the button's own address, which accepts only POST."""

    def conflict(*_: object) -> None:
        raise IntegrityError

    client, app = superuser(), make_app("Portal")
    page = f"http://127.0.0.1/admin/deliveries_app/app/{app.pk}/change/"
    monkeypatch.setattr(services, "change_app", conflict)
    answer = client.post(f"/admin/deliveries_app/app/{app.pk}/pause/", headers={"referer": page}, follow=True)
    assert answer.redirect_chain == [(page, 302)]
    assert "Not saved: another request changed something" in answer.text


def test_same_settings_are_put_twice_at_once(world: World) -> None:
    """The second call changes nothing, but it was recorded too."""
    repo, _ = world.watch()
    is_saved = threading.Event()

    def put() -> None:
        ensure_watched(COMMAND, world.app, repo.url, exclude_patterns="*.png")

    def hold() -> None:
        with transaction.atomic():
            put()
            is_saved.set()
            wait_for(waits_for_a_lock)

    def put_again() -> None:
        assert is_saved.wait(10)
        put()

    in_threads(hold, put_again)
    assert AuditEntry.objects.filter(action=AuditAction.WATCH_CHANGED).count() == 1


def test_retry_by_app_while_a_worker_records_the_first_batch_of_an_hour(world: World) -> None:
    """The worker has locked its watch and inserts a row that refers to the app, which the retry has locked."""
    _, watch = world.watch()
    world.answer(None)
    AppRepository.objects.update(failing_since=Now(), root_cause=RootCause.SERVER_ERROR, status="failed")
    App.objects.update(down_count=1, cooldown_until=Now())
    watch_is_locked = threading.Event()

    def record() -> None:
        with transaction.atomic():
            AppRepository.objects.filter(pk=watch.pk).update(sequence_high=1)
            watch_is_locked.set()
            wait_for(waits_for_a_lock)
            HourlyTraffic.objects.create(app_id=world.app.pk, hour=world.app.created_at)

    def retry() -> None:
        assert watch_is_locked.wait(10)
        retry_by_app(COMMAND, world.app)

    in_threads(record, retry)
    assert HourlyTraffic.objects.count() == 1
    assert BulkOperation.objects.get().total == 1


@pytest.mark.parametrize("what", ["claim", "cancel", "check", "close"])
def test_rows_that_refer_to_locked_ones_can_be_written(world: World, what: str) -> None:
    """At the commit, PostgreSQL locks the keys that new rows refer to, in the order of the inserts, which is any order."""
    _, watch = world.watch()
    operation = BulkOperation.objects.create(total=1)
    act: dict[str, Callable[[], object]] = {
        "claim": lambda: claim(watch.pk),
        "cancel": lambda: cancel_sync(COMMAND, watch),
        "check": head_checks._take_slice,
        "close": lambda: list(runs._locked_open_operation(operation.pk)),
    }
    if what == "check":
        AppRepository.objects.update(next_sync_at=None)  # otherwise it is due for a sync, which reads HEAD itself

    def lock_keys() -> None:
        for model in (AppRepository, BulkOperation):
            with connection.cursor() as cursor:
                cursor.execute(f"SELECT FROM {model._meta.db_table} FOR KEY SHARE NOWAIT")

    with transaction.atomic():
        assert act[what]()
        in_threads(lock_keys)


def test_watching_while_the_orphaned_repository_is_removed(world: World) -> None:
    repo, watch = world.watch()
    world.settle()
    unwatch_repository(COMMAND, watch)
    other = world.add_app("Other")
    is_removed = threading.Event()

    def remove() -> None:
        with transaction.atomic():
            assert cleanup._remove(watch)
            is_removed.set()
            wait_for(waits_for_a_lock)  # by the request below, which has found a row that is gone once this commits

    def watch_again() -> int:
        assert is_removed.wait(10)
        return watch_repository(COMMAND, other, repo.url).watch.pk

    _, watched = in_threads(remove, watch_again)
    assert AppRepository.objects.get().pk == watched
    assert Repository.objects.get().pk != watch.repository_id


def test_large_watch_is_removed_while_its_app_continues(world: World) -> None:
    """Removing a million records takes a minute. Meanwhile, the app's other watches are claimed."""
    _, watch = world.watch({f"{number}.txt": b"x" for number in range(3)})
    world.settle()
    unwatch_repository(COMMAND, watch)

    def can_lock_app_and_repository() -> None:
        with transaction.atomic():
            list(App.objects.select_for_update(no_key=True, nowait=True))
            list(Repository.objects.select_for_update(no_key=True, nowait=True))

    def stop() -> bool:
        in_threads(can_lock_app_and_repository)
        return False

    with transaction.atomic():
        cleanup._remove_slices(watch.pk, stop)
    assert not watch.deliveries.exists()


def test_last_attempt_ends_while_the_app_is_locked(world: World) -> None:
    """A request locks the app and then its watches, so the end of an attempt must not lock the app after the watch."""
    _, watch = world.watch()
    lease = claim(watch.pk)
    assert lease

    def end() -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '2s'")
            assert not lease.retry_was_requested()

    with transaction.atomic():
        list(App.objects.select_for_update(no_key=True))
        in_threads(end)
