"""Permissions of actors, and where actors are recorded (`engine.md` §11)."""

import socket
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied
from django.db.models.functions import Now
from django.test import Client

from deliveries_app.actors import Actor
from deliveries_app.models import (
    App,
    AppRepository,
    AuditEntry,
    BulkOperation,
    Delivery,
    DriftCheck,
    OperationKind,
    Outcome,
    SyncRun,
)
from deliveries_app.progress import runs
from deliveries_app.services import (
    cancel_check,
    cancel_operation,
    cancel_request,
    cancel_sync,
    change_app,
    check_app,
    check_watch,
    continue_operation,
    delete_app,
    onboard_app,
    pause_syncing,
    pause_watches,
    resend_files,
    resend_many,
    resume_syncing,
    resume_watches,
    resync_by_app,
    resync_many,
    resync_single,
    retry_all,
    retry_by_app,
    retry_single,
    send_differences,
    unwatch_repository,
    watch_repository,
)
from deliveries_app.services.app_settings import change_own_settings
from deliveries_app.services.control import reset_circuits
from deliveries_app.services.keys import cancel_key_rotation, retire_old_key, start_key_rotation
from deliveries_app.services.pinging import send_ping
from deliveries_app.services.tokens import retire_old_tokens, rotate_app_token
from deliveries_app.services.watch_settings import change_watch, renew_push_secret
from deliveries_app.services.watching import unwatch_many, validate_options
from deliveries_app.services.watching_many import watch_many
from tests.api.caller import Caller
from tests.support.audit import by_apps, by_users, messages
from tests.support.world import World


def staff(*permissions: str) -> Actor:
    user = User.objects.create_user(f"user-{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return Actor.of_user(user)


OPERATOR = ("view_apprepository", "resync_apprepository", "view_bulkoperation")

Act = Callable[[Actor, AppRepository, BulkOperation], object]
SERVICES: dict[str, Act] = {
    "onboard": lambda actor, watch, operation: onboard_app(actor, name="Other", base_url="http://a.example", email="a@b.example"),
    "watch": lambda actor, watch, operation: watch_repository(actor, watch.app, watch.github_url),
    "unwatch": lambda actor, watch, operation: unwatch_repository(actor, watch),
    "delete app": lambda actor, watch, operation: delete_app(actor, watch.app),
    "re-sync": lambda actor, watch, operation: resync_single(actor, watch),
    "re-sync several": lambda actor, watch, operation: resync_many(actor, AppRepository.objects.all()),
    "re-sync by app": lambda actor, watch, operation: resync_by_app(actor, watch.app),
    "cancel": lambda actor, watch, operation: cancel_operation(actor, operation),
    "cancel one": lambda actor, watch, operation: cancel_request(actor, watch),
}  # fmt: skip


@pytest.fixture
def watch(world: World) -> AppRepository:
    return world.watch()[1]


@pytest.fixture
def operation(watch: AppRepository) -> BulkOperation:
    return resync_many(Actor.command(), AppRepository.objects.filter(pk=watch.pk))


@pytest.mark.parametrize("service", SERVICES)
def test_user_without_permission_changes_nothing(watch: AppRepository, operation: BulkOperation, service: str) -> None:
    before = AppRepository.objects.values().get()
    with pytest.raises(PermissionDenied):
        SERVICES[service](staff("view_apprepository", "change_apprepository"), watch, operation)
    assert AppRepository.objects.values().get() == before
    assert not by_users().exists()


@pytest.mark.parametrize("service", ["re-sync", "re-sync several", "re-sync by app", "cancel", "cancel one"])
def test_operator_needs_no_change_permission(watch: AppRepository, operation: BulkOperation, service: str) -> None:
    operator = staff(*OPERATOR)
    before = watch.runs.count()
    SERVICES[service](operator, watch, operation)
    if service.startswith("cancel"):
        assert operation.runs.get().outcome == Outcome.CANCELLED
        assert watch.runs.count() == before
    else:
        assert watch.runs.latest("pk").requested_by == operator.name
        assert watch.runs.count() == before + 1
    assert by_users().get().actor == operator.name


@pytest.mark.parametrize("service", [service for service in SERVICES if service != "onboard"])
def test_app_cannot_act_on_another_app(
    world: World, watch: AppRepository, operation: BulkOperation, service: str
) -> None:
    before = AppRepository.objects.values().get()
    with pytest.raises(PermissionDenied):
        SERVICES[service](Actor.of_app(world.add_app("Other")), watch, operation)
    assert AppRepository.objects.values().get() == before
    operation.refresh_from_db()
    assert operation.cancelled_at is None


OTHER_SERVICES: dict[str, Callable[[Actor, AppRepository], object]] = {
    "watch several": lambda actor, watch: watch_many(actor, watch.app, [watch.github_url], validate_options()),
    "unwatch several": lambda actor, watch: unwatch_many(actor, AppRepository.objects.all()),
    "cancel sync": lambda actor, watch: cancel_sync(actor, watch),
    "retry": lambda actor, watch: retry_single(actor, watch),
    "retry by app": lambda actor, watch: retry_by_app(actor, watch.app),
    "retry all": lambda actor, watch: retry_all(actor),
    "resend": lambda actor, watch: resend_files(actor, watch, ["a.txt"]),
    "resend several": lambda actor, watch: resend_many(actor, [watch.deliveries.get().pk]),
    "check": lambda actor, watch: check_watch(actor, watch),
    "check by app": lambda actor, watch: check_app(actor, watch.app),
    "cancel check": lambda actor, watch: cancel_check(actor, watch.drift_checks.get()),
    "send differences": lambda actor, watch: send_differences(actor, watch.drift_checks.get()),
    "continue": lambda actor, watch: continue_operation(actor, BulkOperation.objects.get()),
    "pause": lambda actor, watch: pause_watches(actor, AppRepository.objects.all()),
    "resume": lambda actor, watch: resume_watches(actor, AppRepository.objects.all()),
    "pause all": lambda actor, watch: pause_syncing(actor),
    "resume all": lambda actor, watch: resume_syncing(actor),
    "reset circuit": lambda actor, watch: reset_circuits(actor, [watch.repository]),
    "change watch": lambda actor, watch: change_watch(actor, watch, ref="other"),
    "push secret": lambda actor, watch: renew_push_secret(actor, watch),
    "change app": lambda actor, watch: change_app(actor, watch.app, ["base_url"]),
    "own settings": lambda actor, watch: change_own_settings(actor, watch.app, paused=True),
    "rotate token": lambda actor, watch: rotate_app_token(actor, watch.app),
    "retire tokens": lambda actor, watch: retire_old_tokens(actor, watch.app),
    "rotate key": lambda actor, watch: start_key_rotation(actor, watch.app),
    "retire key": lambda actor, watch: retire_old_key(actor, watch.app),
    "discard key": lambda actor, watch: cancel_key_rotation(actor, watch.app),
    "ping": lambda actor, watch: send_ping(actor, watch.app),
}


@pytest.mark.parametrize("who", ["another app", "a user without permissions"])
def test_every_other_service_refuses(watches: list[AppRepository], who: str, subtests: pytest.Subtests) -> None:
    watch = watches[0]
    Delivery.objects.create(
        watch=watch, path="a.txt", mode="100644", kind="create", source_key="x", sha="0" * 64, size=1, sequence=1,
        generation=1, acknowledged=True, updated_at=Now(),
    )  # fmt: skip
    DriftCheck.objects.create(watch=watch, requested_by="anna")
    BulkOperation.objects.create(kind=OperationKind.RESYNC, title="All", app=watch.app, requested_by="anna", total=1)
    AppRepository.objects.filter(pk=watches[1].pk).update(paused_at=Now(), failing_since=Now(), root_cause="timeout")
    actor = Actor.of_app(watches[2].app) if who == "another app" else staff()
    before = list(AppRepository.objects.values()), list(App.objects.values())
    for name, act in OTHER_SERVICES.items():
        with subtests.test(name), pytest.raises(PermissionDenied):
            act(actor, watch)
    assert (list(AppRepository.objects.values()), list(App.objects.values())) == before


def test_app_can_resync_and_unwatch_its_own_repositories(world: World, watch: AppRepository) -> None:
    actor = Actor.of_app(world.app)
    assert resync_single(actor, watch).requested_by == "app Portal"
    unwatch_repository(actor, watch)


def test_only_active_staff_are_actors(db: None) -> None:
    for user in (
        AnonymousUser(),
        User(username="nobody"),
        User(username="gone", is_staff=True, is_active=False, is_superuser=True),
    ):
        with pytest.raises(PermissionDenied):
            Actor.of_user(user)


def test_actor_carries_the_address_of_the_request(world: World, watch: AppRepository, settings: Any) -> None:
    """From the admin, the admin JSON and the REST API. Behind a trusted proxy it is the client's, not the proxy's."""
    settings.TRUSTED_PROXIES = [ip_network("10.0.0.0/8")]
    admin = Client(REMOTE_ADDR="10.0.0.1", headers={"X-Forwarded-For": "203.0.113.7"})
    admin.force_login(User.objects.create_superuser("olga"))
    assert admin.post("/admin/deliveries_app/queue/pause/", {"post": "yes"}).status_code == 302
    ids = {"app_id": world.app.app_id, "repository_id": watch.repository.repository_id}
    assert admin.post("/admin/api/resync", ids, content_type="application/json").status_code == 200
    caller = Caller(world.app, address="203.0.113.8")
    assert caller.post(body={"github_url": watch.github_url}).status_code == 201
    recorded = [*by_users(), *by_apps()]
    assert [(entry.actor, entry.address) for entry in recorded] == [
        ("olga", "203.0.113.7"),
        ("olga", "203.0.113.7"),
        ("app Portal", "203.0.113.8"),
    ]
    assert Actor.command().address.endswith(f"@{socket.gethostname()}")
    assert Actor.system().address == ""


def test_runs_and_operations_record_the_actor(world: World, watch: AppRepository) -> None:
    actor = staff(*OPERATOR)
    run = resync_single(actor, watch)
    assert (run.requested_by, run.user) == (actor.name, actor.user)
    operation = resync_many(actor, AppRepository.objects.all())
    assert (operation.requested_by, operation.user) == (actor.name, actor.user)
    assert SyncRun.objects.filter(operation=operation).get().requested_by == actor.name
    assert resync_single(Actor.command(), watch).requested_by == "command line"
    cancel_operation(actor, resync_many(Actor.system(), AppRepository.objects.all()))
    last = BulkOperation.objects.latest("pk")
    assert (last.requested_by, last.cancelled_by) == ("Docora", actor.name)


@pytest.mark.parametrize(("limit", "entries"), [(3, 3), (2, 1)])
def test_log_entries_for_each_watch_or_for_a_large_operation(
    world: World, monkeypatch, limit: int, entries: int
) -> None:
    assert runs.LOGGED_ONE_BY_ONE == 100
    monkeypatch.setattr(runs, "LOGGED_ONE_BY_ONE", limit)
    for number in range(3):
        world.watch(name=f"acme/widgets-{number}")
    actor = staff(*OPERATOR)
    operation = resync_many(actor, AppRepository.objects.all())
    assert by_users().count() == entries
    subjects = set(by_users().values_list("subject_type", "subject_id", "app_id", "operation_id"))
    rows = AppRepository.objects.all() if entries == 3 else [operation]
    expected = {(row._meta.label_lower, str(row.pk), world.app.app_id, operation.operation_id) for row in rows}
    assert subjects == expected  # each is in the log of its app


def test_requests_of_users_and_commands_are_logged(world: World, watch: AppRepository) -> None:
    actor = staff(*OPERATOR)
    resync_single(actor, watch)
    cancel_request(actor, watch)
    assert messages(by_users()) == [
        f"Re-sync of {watch}",
        "Cancelled the re-sync",
    ]
    resync_single(Actor.command(), watch)
    assert AuditEntry.objects.latest("pk").actor_kind == "command"
