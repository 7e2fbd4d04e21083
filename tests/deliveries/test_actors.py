"""Who may do what, and where it is written down (`engine.md` §11)."""

from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.exceptions import PermissionDenied

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, BulkOperation, SyncRun
from deliveries_app.progress import runs
from deliveries_app.services import (
    cancel_operation,
    cancel_request,
    delete_app,
    dismiss_operation,
    onboard_app,
    resync_by_app,
    resync_many,
    resync_single,
    unwatch_repository,
    watch_repository,
)
from tests.support.world import World


def staff(*permissions: str) -> Actor:
    user = User.objects.create_user(f"user-{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return Actor.of_user(user)


OPERATOR = ("view_apprepository", "resync_apprepository", "view_bulkoperation")

BulkAction = Callable[[Actor, AppRepository, BulkOperation], object]
VERBS: dict[str, BulkAction] = {
    "onboard": lambda actor, watch, operation: onboard_app(actor, name="Other", base_url="http://a.example", email="a@b.example"),
    "watch": lambda actor, watch, operation: watch_repository(actor, watch.app, watch.github_url),
    "unwatch": lambda actor, watch, operation: unwatch_repository(actor, watch),
    "delete app": lambda actor, watch, operation: delete_app(actor, watch.app),
    "re-sync": lambda actor, watch, operation: resync_single(actor, watch),
    "re-sync several": lambda actor, watch, operation: resync_many(actor, AppRepository.objects.all()),
    "re-sync by app": lambda actor, watch, operation: resync_by_app(actor, watch.app),
    "cancel": lambda actor, watch, operation: cancel_operation(actor, operation),
    "cancel one": lambda actor, watch, operation: cancel_request(actor, watch),
    "dismiss": lambda actor, watch, operation: dismiss_operation(actor, operation),
}  # fmt: skip


@pytest.fixture
def watch(world: World) -> AppRepository:
    return world.watch()[1]


@pytest.fixture
def operation(watch: AppRepository) -> BulkOperation:
    return resync_many(Actor.command(), AppRepository.objects.filter(pk=watch.pk))


@pytest.mark.parametrize("verb", VERBS)
def test_a_user_without_the_permission_is_refused_and_nothing_has_changed(
    watch: AppRepository, operation: BulkOperation, verb: str
) -> None:
    before = AppRepository.objects.values().get()
    with pytest.raises(PermissionDenied):
        VERBS[verb](staff("view_apprepository", "change_apprepository"), watch, operation)
    assert AppRepository.objects.values().get() == before
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize("verb", ["re-sync", "re-sync several", "re-sync by app", "cancel", "cancel one", "dismiss"])
def test_an_operator_needs_to_view_and_to_resync_but_not_to_change(
    watch: AppRepository, operation: BulkOperation, verb: str
) -> None:
    VERBS[verb](staff(*OPERATOR), watch, operation)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "onboard"])
def test_an_app_may_do_nothing_to_what_belongs_to_another(
    world: World, watch: AppRepository, operation: BulkOperation, verb: str
) -> None:
    before = AppRepository.objects.values().get()
    with pytest.raises(PermissionDenied):
        VERBS[verb](Actor.of_app(world.add_app("Other")), watch, operation)
    assert AppRepository.objects.values().get() == before
    operation.refresh_from_db()
    assert (operation.cancelled_at, operation.dismissed_at) == (None, None)


def test_an_app_may_resync_and_unwatch_its_own(world: World, watch: AppRepository) -> None:
    actor = Actor.of_app(world.app)
    assert resync_single(actor, watch).run.requested_by == "app Portal"
    unwatch_repository(actor, watch)


def test_only_active_staff_are_actors(db: None) -> None:
    for user in (
        AnonymousUser(),
        User(username="nobody"),
        User(username="gone", is_staff=True, is_active=False, is_superuser=True),
    ):
        with pytest.raises(PermissionDenied):
            Actor.of_user(user)


def test_who_asked_stands_on_the_run_and_on_the_operation(world: World, watch: AppRepository) -> None:
    actor = staff(*OPERATOR)
    run = resync_single(actor, watch).run
    assert (run.requested_by, run.user) == (actor.name, actor.user)
    operation = resync_many(actor, AppRepository.objects.all())
    assert (operation.requested_by, operation.user) == (actor.name, actor.user)
    assert SyncRun.objects.filter(operation=operation).get().requested_by == actor.name
    assert resync_single(Actor.command(), watch).run.requested_by == "command line"
    cancel_operation(actor, resync_many(Actor.system(), AppRepository.objects.all()))
    last = BulkOperation.objects.latest("pk")
    assert (last.requested_by, last.cancelled_by) == ("Docora", actor.name)


@pytest.mark.parametrize(("limit", "entries"), [(3, 3), (2, 1)])
def test_django_s_log_names_each_watch_up_to_a_limit_and_beyond_it_the_operation(
    world: World, monkeypatch, limit: int, entries: int
) -> None:
    assert runs.LOGGED_ONE_BY_ONE == 100
    monkeypatch.setattr(runs, "LOGGED_ONE_BY_ONE", limit)
    for number in range(3):
        world.watch(name=f"acme/widgets-{number}")
    actor = staff(*OPERATOR)
    operation = resync_many(actor, AppRepository.objects.all())
    logged = LogEntry.objects.filter(user=actor.user)
    assert logged.count() == entries
    objects = {entry.get_edited_object() for entry in logged}
    assert objects == (set(AppRepository.objects.all()) if entries == 3 else {operation})


def test_a_resync_and_its_cancel_are_logged_for_users_only(world: World, watch: AppRepository) -> None:
    actor = staff(*OPERATOR)
    resync_single(actor, watch)
    cancel_request(actor, watch)
    assert [entry.change_message for entry in LogEntry.objects.order_by("pk")] == [
        f"Forced re-sync of {watch}",
        "Cancelled the re-sync",
    ]
    resync_single(Actor.command(), watch)
    assert LogEntry.objects.count() == 2
