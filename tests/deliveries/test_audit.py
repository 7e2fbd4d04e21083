"""The audit log: every use case writes it for every kind of actor, nothing changes it, and it can be found and exported."""

import csv
import importlib
import inspect
import io
import json
import pkgutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user, logout
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.test import Client
from django.utils import timezone

from deliveries_app import audit, services
from deliveries_app.actors import Actor
from deliveries_app.models import (
    ActorKind,
    App,
    AppRepository,
    AuditAction,
    AuditEntry,
    BulkOperation,
    CanaryState,
    DriftCheck,
    DriftFile,
    DriftKind,
    DriftState,
    Outcome,
    RootCause,
    SyncRun,
)
from deliveries_app.services import (
    app_settings,
    github_apps,
    keys,
    onboarding,
    pinging,
    sign_ins,
    tokens,
    watch_settings,
    watching_many,
)
from deliveries_app.services import cancel as cancelling
from deliveries_app.services.watching import WatchOptions
from deliveries_app.sweep.retention import prune
from deliveries_app.sync.outcomes import pause_app
from docora.db import append_only
from docora.sign_in.sessions import SessionStore
from repositories_app import github
from repositories_app.models import GitHubApp
from tests.api.caller import Caller
from tests.docora.test_sign_in import make_old, set_up_totp
from tests.docora.test_sign_in import proxy as proxy
from tests.support.audit import by_users, messages
from tests.support.github_api import pem
from tests.support.processes import in_threads
from tests.support.staff import fail, make_app, make_watch, staff
from tests.support.world import World

LIST = "/admin/deliveries_app/auditentry/"
TABLE = AuditEntry._meta.db_table
A = AuditAction

# --- Every use case ------------------------------------------------------------------------------------------------------

_INNER = {
    "lock_app", "lock_watch", "notify_contact", "start_single", "start_bulk", "request_resync", "record_opened",
    "open_runs", "resync_watches", "request_unacknowledged", "store_watch", "check_readable",
    "require_quota", "is_limited", "require_room_for_watch", "require_resync", "count_resync", "count_unwatch",
}  # fmt: skip
"""Parts of use cases. What they record is tested with the use cases."""
_UNRECORDED = {"repository_pushed": "A git host sends it on every push. It only makes Docora check the repository."}


def use_cases() -> set[str]:
    """Return every public function of the services whose first argument is the actor."""
    found = set()
    for info in pkgutil.iter_modules(services.__path__):
        module = importlib.import_module(f"{services.__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            is_public = function.__module__ == module.__name__ and not name.startswith("_")
            if is_public and next(iter(inspect.signature(function).parameters), "") == "actor":
                found.add(name)
    return found - _INNER - set(_UNRECORDED)


class Stage:
    """An app with two repositories that have been synced."""

    def __init__(self, world: World) -> None:
        self.world, self.app = world, world.app
        App.objects.filter(pk=self.app.pk).update(answers_verify=True)
        self.app.refresh_from_db()
        self.repo, self.watch = world.watch({"readme.md": b"1", "a.txt": b"2"})
        self.other = world.watch(name="acme/other")[1]
        world.settle()
        self.watch = AppRepository.objects.select_related("app", "repository").get(pk=self.watch.pk)

    @property
    def both(self) -> Any:
        return AppRepository.objects.filter(pk__in=[self.watch.pk, self.other.pk])

    def failing(self) -> None:
        for watch in self.both:
            fail(watch, RootCause.TIMEOUT)

    def found_differences(self) -> DriftCheck:
        check = DriftCheck.objects.create(
            watch=self.watch, state=DriftState.DIFFERS, ended_at=timezone.now(), missing=1, listed=1
        )
        sequence = self.world.rows(self.watch)["a.txt"].sequence
        DriftFile.objects.create(check_of=check, path="a.txt", kind=DriftKind.MISSING, sequence=sequence)
        return check

    def held(self, actor: Actor) -> BulkOperation:
        rollout = services.Rollout(canary=True)
        operation = services.resync_by_app(Actor.system(), self.app, rollout=rollout)
        SyncRun.objects.filter(operation=operation).update(outcome=Outcome.FAILED, ended_at=timezone.now(), error="No.")
        operation.canaries.update(state=CanaryState.HELD, reason="No.")
        BulkOperation.objects.filter(pk=operation.pk).update(held_at=timezone.now(), held_reason="No.")
        operation.refresh_from_db()
        return operation

    def accept_new_key(self) -> None:
        App.objects.filter(pk=self.app.pk).update(new_key_accepted_at=timezone.now())

    def changed_app(self) -> App:
        app = App.objects.get(pk=self.app.pk)
        app.base_url, app.paused, app.max_in_flight = "http://127.0.0.1:9/new", True, 3
        return app


Step = tuple[str, Callable[[Stage], Any], Callable[[Actor, Stage, Any], Any], list[AuditAction]]


def nothing(stage: Stage) -> None:
    """Prepare nothing."""


def steps() -> Iterable[Step]:
    """Yield the name of each use case, what to prepare, the call, and the actions that it records."""
    s = services
    options = WatchOptions("", "", "", "", "")
    yield (
        "watch_many",
        lambda stage: stage.world.git.repo("acme/third", {"a": b"1"}).url,
        (lambda actor, stage, url: watching_many.watch_many(actor, stage.app, [url], options)),
        [A.WATCHED],
    )
    yield (
        "watch_repository",
        lambda stage: stage.world.git.repo("acme/fourth", {"a": b"1"}).url,
        (lambda actor, stage, url: s.watch_repository(actor, stage.app, url)),
        [A.WATCHED],
    )
    yield (
        "watch_repository",
        lambda stage: stage.world.git.repo("acme/fifth", {"a": b"1"}).url,
        (lambda actor, stage, url: s.watch_repository(actor, stage.app, url, ask_host=False)),
        [A.WATCHED],
    )
    yield (
        "watch_repository",
        nothing,
        (
            lambda actor, stage, _: s.watch_repository(
                actor, stage.app, stage.watch.github_url, exclude_patterns="*.png"
            )
        ),
        [A.WATCH_CHANGED, A.RESYNC],
    )
    yield (
        "ensure_watched",
        nothing,
        (lambda actor, stage, _: s.ensure_watched(actor, stage.app, stage.watch.github_url, exclude_patterns="*.gif")),
        [A.WATCH_CHANGED],
    )
    changes: list[dict[str, str]] = [
        {"github_token": "ghp_of_the_test"},
        {"ref": "main"},
        {"ignore_patterns": "*.log"},
        {"include_patterns": "*.txt", "exclude_patterns": ""},
    ]
    for change in changes:
        yield (
            "change_watch",
            nothing,
            (lambda actor, stage, _, change=change: s.change_watch(actor, stage.watch, **change)),
            [A.WATCH_CHANGED],
        )
    yield (
        "change_watch",
        nothing,
        lambda actor, stage, _: s.change_watch(actor, stage.watch, github_url=f"{stage.watch.github_url}/"),
        [A.WATCH_CHANGED],
    )
    yield (
        "renew_push_secret",
        nothing,
        lambda actor, stage, _: watch_settings.renew_push_secret(actor, stage.watch),
        [A.WATCH_CHANGED],
    )
    yield "pause_watches", nothing, lambda actor, stage, _: s.pause_watches(actor, stage.both), [A.WATCH_PAUSED] * 2
    yield "resume_watches", nothing, lambda actor, stage, _: s.resume_watches(actor, stage.both), [A.WATCH_RESUMED] * 2
    yield "check_watch", nothing, lambda actor, stage, _: s.check_watch(actor, stage.watch), [A.CHECK]
    yield (
        "cancel_check",
        lambda stage: DriftCheck.objects.open().get(),
        (lambda actor, stage, check: s.cancel_check(actor, check)),
        [A.CANCEL],
    )
    yield "check_app", nothing, lambda actor, stage, _: s.check_app(actor, stage.app), [A.CHECK]
    yield (
        "send_differences",
        Stage.found_differences,
        (lambda actor, stage, check: s.send_differences(actor, check)),
        [A.DIFFERENCES],
    )
    yield "resend_files", nothing, lambda actor, stage, _: s.resend_files(actor, stage.watch, ["a.txt"]), [A.RESEND]
    yield (
        "resend_many",
        lambda stage: [stage.world.rows(stage.watch)["a.txt"].pk],
        (lambda actor, stage, rows: s.resend_many(actor, rows, reason="Lost")),
        [A.RESEND],
    )
    yield "cancel_sync", nothing, lambda actor, stage, _: s.cancel_sync(actor, stage.watch), [A.CANCEL]
    yield "resync_single", nothing, lambda actor, stage, _: s.resync_single(actor, stage.watch), [A.RESYNC]
    yield "cancel_request", nothing, lambda actor, stage, _: s.cancel_request(actor, stage.watch), [A.CANCEL]
    yield (
        "resync_many",
        nothing,
        lambda actor, stage, _: s.resync_many(actor, stage.both, reason="Lost"),
        [A.RESYNC] * 2,
    )
    yield (
        "resync_by_app",
        lambda stage: stage.app.watches.count(),
        (lambda actor, stage, _: s.resync_by_app(actor, stage.app)),
        [A.RESYNC] * 5,
    )
    yield (
        "cancel_operation",
        lambda stage: BulkOperation.objects.latest("pk"),
        (lambda actor, stage, operation: s.cancel_operation(actor, operation)),
        [A.CANCEL],
    )
    yield (
        "continue_operation",
        lambda stage: stage.held(Actor.system()),
        (lambda actor, stage, operation: s.continue_operation(actor, operation)),
        [A.CONTINUE],
    )
    yield "retry_single", Stage.failing, lambda actor, stage, _: s.retry_single(actor, stage.watch), [A.RETRY]
    yield "retry_by_app", Stage.failing, lambda actor, stage, _: s.retry_by_app(actor, stage.app), [A.RETRY] * 2
    yield "retry_many", Stage.failing, lambda actor, stage, _: s.retry_many(actor, stage.both), [A.RETRY] * 2
    yield "retry_all", Stage.failing, lambda actor, stage, _: s.retry_all(actor), [A.RETRY] * 2
    yield (
        "reset_circuits",
        nothing,
        (lambda actor, stage, _: s.control.reset_circuits(actor, [stage.watch.repository, stage.other.repository])),
        [A.CIRCUIT_RESET] * 2,
    )
    yield "send_ping", nothing, lambda actor, stage, _: pinging.send_ping(actor, stage.app), [A.PING]
    yield (
        "rotate_app_token",
        nothing,
        lambda actor, stage, _: tokens.rotate_app_token(actor, stage.app),
        [A.TOKEN_ROTATED],
    )
    yield (
        "retire_old_tokens",
        nothing,
        lambda actor, stage, _: tokens.retire_old_tokens(actor, stage.app),
        [A.TOKENS_RETIRED],
    )
    yield (
        "start_key_rotation",
        nothing,
        lambda actor, stage, _: keys.start_key_rotation(actor, stage.app),
        [A.KEY_STARTED],
    )
    yield (
        "cancel_key_rotation",
        nothing,
        lambda actor, stage, _: keys.cancel_key_rotation(actor, stage.app),
        [A.KEY_DISCARDED],
    )
    yield (
        "start_key_rotation",
        nothing,
        lambda actor, stage, _: keys.start_key_rotation(actor, stage.app),
        [A.KEY_STARTED],
    )
    yield (
        "retire_old_key",
        Stage.accept_new_key,
        lambda actor, stage, _: keys.retire_old_key(actor, stage.app),
        [A.KEY_RETIRED],
    )
    own = app_settings.change_own_settings
    yield (
        "change_own_settings",
        nothing,
        lambda actor, stage, _: own(actor, stage.app, paused=True, max_in_flight=2),
        [A.APP_PAUSED, A.APP_CHANGED],
    )
    yield "change_own_settings", nothing, lambda actor, stage, _: own(actor, stage.app, paused=False), [A.APP_RESUMED]
    yield (
        "change_app",
        Stage.changed_app,
        (lambda actor, stage, app: s.change_app(actor, app, ["base_url", "paused", "max_in_flight"])),
        [A.APP_PAUSED, A.APP_CHANGED],
    )
    yield "unwatch_repository", nothing, lambda actor, stage, _: s.unwatch_repository(actor, stage.watch), [A.UNWATCHED]
    yield "unwatch_many", nothing, lambda actor, stage, _: s.unwatch_many(actor, [stage.other]), [A.UNWATCHED]
    yield "pause_syncing", nothing, lambda actor, stage, _: s.pause_syncing(actor), [A.ALL_PAUSED]
    yield "resume_syncing", nothing, lambda actor, stage, _: s.resume_syncing(actor), [A.ALL_RESUMED]
    new = GitHubApp(name="Reader", host="https://github.com", app_id="1")
    yield (
        "save_github_app",
        nothing,
        lambda actor, stage, _: github_apps.save_github_app(actor, new, pem()),
        [A.GITHUB_APP_ADDED],
    )
    yield (
        "save_github_app",
        lambda stage: setattr(new, "name", "Other"),
        (lambda actor, stage, _: github_apps.save_github_app(actor, new)),
        [A.GITHUB_APP_CHANGED],
    )
    yield (
        "list_installations",
        nothing,
        lambda actor, stage, _: github_apps.list_installations(actor, new),
        [A.GITHUB_APP_TESTED],
    )
    yield (
        "delete_github_app",
        nothing,
        lambda actor, stage, _: github_apps.delete_github_app(actor, new),
        [A.GITHUB_APP_DELETED],
    )
    yield "onboard_app", nothing, partial(_onboard), [A.APP_REGISTERED]
    yield "delete_app", nothing, lambda actor, stage, _: s.delete_app(actor, stage.app), [A.APP_DELETED]


def _onboard(actor: Actor, stage: Stage, _: Any) -> Any:
    return onboarding.onboard_app(actor, name="New", base_url="https://new.example", email="a@new.example")


_OF_NO_APP = {
    A.ALL_PAUSED, A.ALL_RESUMED, A.CIRCUIT_RESET, A.GITHUB_APP_ADDED, A.GITHUB_APP_CHANGED, A.GITHUB_APP_TESTED,
    A.GITHUB_APP_DELETED,
}  # fmt: skip


def test_steps_cover_every_use_case() -> None:
    assert {name for name, *_ in steps()} == use_cases()


@pytest.mark.parametrize("kind", [ActorKind.USER, ActorKind.APP, ActorKind.COMMAND])
def test_every_use_case_is_recorded(world: World, monkeypatch: pytest.MonkeyPatch, settings, kind: ActorKind) -> None:
    """An app has fewer permissions. A call that is refused leaves no entry."""
    settings.ALLOWED_GIT_HOSTS = ["github.com", "127.0.0.1:*"]
    monkeypatch.setattr(github, "installations", lambda _: [])
    stage = Stage(world)
    actor = {
        ActorKind.USER: Actor.of_user(User.objects.create_superuser("olga"), address="203.0.113.7"),
        ActorKind.APP: Actor.of_app(stage.app, address="203.0.113.8"),
        ActorKind.COMMAND: Actor.command(),
    }[kind]
    refused = set()
    for name, prepare, act, expected in steps():
        prepared = prepare(stage)
        last = AuditEntry.objects.latest("pk").pk
        try:
            act(actor, stage, prepared)
        except PermissionDenied:
            refused.add(name)
            assert not AuditEntry.objects.filter(pk__gt=last).exists(), name
            continue
        entries = list(AuditEntry.objects.filter(pk__gt=last, actor_kind=kind).order_by("pk"))
        assert [entry.action for entry in entries] == expected, name
        for entry in entries:
            assert (entry.actor, entry.address) == (actor.name, actor.address), name
            assert entry.subject, name
            assert bool(entry.app_id) == (entry.action not in _OF_NO_APP), name
            assert entry.app_id in {"", stage.app.app_id} or name == "onboard_app", name
        stage.app.refresh_from_db()
        stage.watch.refresh_from_db()
    assert refused == ({"change_app", "pause_syncing", "resume_syncing"} if kind == ActorKind.APP else set())
    log = json.dumps(list(AuditEntry.objects.values()), default=str)
    for secret in (stage.app.client_auth_key, stage.watch.push_secret, "ghp_of_the_test", "PRIVATE KEY"):
        assert secret, "there is one to look for"
        assert secret not in log


def test_entries_have_old_and_new_values(db) -> None:
    app, olga = make_app("Portal"), Actor.of_user(User.objects.create_superuser("olga"))
    app.base_url, app.name, app.send_sync_completed = "https://new.example", "Portal 2", True
    services.change_app(olga, app, ["base_url", "name", "send_sync_completed"])
    entry = by_users().get()
    assert entry.old == {"base URL": "https://x.example", "name": "Portal", "send sync_completed": False}
    assert entry.new == {"base URL": "https://new.example", "name": "Portal 2", "send sync_completed": True}
    assert entry.message == (
        "Base URL: https://x.example → https://new.example; name: Portal → Portal 2; send sync_completed: no → yes"
    )
    services.change_app(olga, app, ["name"])
    assert by_users().count() == 1, "nothing was changed"
    keys.start_key_rotation(olga, app)
    assert by_users().latest("pk").new == {"new signing key": "added"}


@pytest.mark.parametrize(
    ("before", "after", "expected"), [("", "new", "added"), ("old", "new", "changed"), ("old", "", "removed")]
)
def test_log_says_only_that_a_secret_was_changed(before: str, after: str, expected: str) -> None:
    changes = audit.Changes.of(AppRepository, {"github_token": before}, {"github_token": after})
    assert (changes.old, changes.new) == ({}, {"token": expected})
    assert changes
    assert changes.summary == f"Token: {expected}"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 5, "Repositories: 0 → 5"),
        (None, "main", "Repositories: nothing → main"),
        ("*.png", "", "Repositories: *.png → nothing"),
        ("*.png\n*.gif", "*.png", "Changed: repositories"),
        ("a" * 300, "b", "Changed: repositories"),
    ],
)
def test_message_names_only_the_setting_if_its_values_are_long(before: object, after: object, expected: str) -> None:
    assert audit.Changes({"repositories": before}, {"repositories": after}).summary == expected


def test_values_of_a_new_row(db) -> None:
    given = {"ref": "", "github_token": "ghp_x", "ignore_patterns": "*.log", "tree_files": 0, "last_status_code": None}
    changes = audit.Changes.initial(AppRepository, given)
    assert (changes.old, changes.new) == ({}, {"token": "added", "ignore patterns": "*.log", "files": 0})


def test_log_stores_numbers_as_they_are_and_texts_that_every_database_accepts() -> None:
    assert [audit.storable_value(value) for value in (None, 7, True)] == [None, 7, True]
    assert audit.storable_value("a\0b") == "a\ufffdb"
    assert audit.storable_value("https://olga:hunter2@x.example") == "https://[redacted]@x.example"
    assert [len(audit.storable_value("x" * length)) for length in (2048, 3000)] == [2048, 2048]


def test_resync_of_many_is_in_the_log_of_each_app(watches, monkeypatch) -> None:
    monkeypatch.setattr("deliveries_app.progress.runs.LOGGED_ONE_BY_ONE", 2)
    portal, search = watches[0].app, watches[2].app
    operation = services.resync_many(Actor.command(), AppRepository.objects.all(), reason="New disk")
    services.cancel_operation(Actor.command(), operation)
    for app, count in ((portal, "2 repositories"), (search, "1 repository")):
        entries = AuditEntry.objects.filter(app_id=app.app_id).order_by("pk")
        assert messages(entries) == [f"Re-sync of {count}", f"Cancelled with {count} unfinished"]
        assert {entry.operation_id for entry in entries} == {operation.operation_id}
    assert AuditEntry.objects.filter(reason="New disk").count() == 2


def test_cancel_that_comes_too_late_is_not_recorded(watches, monkeypatch) -> None:
    services.resync_single(Actor.command(), watches[0])
    cancel = cancelling._cancel

    def late(open_runs: QuerySet[SyncRun]) -> int:
        SyncRun.objects.update(
            outcome=Outcome.SUCCEEDED, ended_at=timezone.now()
        )  # a worker, before the watch is locked
        return cancel(open_runs)

    monkeypatch.setattr(cancelling, "_cancel", late)
    assert services.cancel_request(Actor.command(), watches[0]) == 0
    assert not AuditEntry.objects.filter(action=A.CANCEL).exists()


def test_docora_records_that_it_paused_an_app(db) -> None:
    app = make_app("Portal")
    pause_app(app, "The app returned HTTP 410.")
    pause_app(app, "The app returned HTTP 410.")  # a second worker
    entry = AuditEntry.objects.get(app_id=app.app_id)
    assert (entry.actor, entry.actor_kind, entry.action) == ("Docora", "system", A.APP_PAUSED)
    assert entry.message == "Paused. The app returned HTTP 410."


def test_entry_is_rolled_back_with_its_change(db) -> None:
    app = make_app("Portal")
    with transaction.atomic():
        tokens.rotate_app_token(Actor.command(), app)
        transaction.set_rollback(True)
    assert not AuditEntry.objects.filter(app_id=app.app_id).exists()


def test_admin_api_and_command_record_the_same(db) -> None:
    app, admin = make_app("Portal"), Client(REMOTE_ADDR="203.0.113.7")
    admin.force_login(User.objects.create_superuser("olga"))
    caller = Caller(app, address="203.0.113.8")
    assert admin.post(f"/admin/deliveries_app/app/{app.pk}/pause/").status_code == 302
    call_command("resume_syncing", app.app_id, stdout=io.StringIO())
    answer = caller.client.patch("/api/app", json.dumps({"paused": True}), content_type="application/json")
    assert answer.status_code == 200
    found = AuditEntry.objects.filter(app_id=app.app_id).order_by("pk")
    assert list(found.values_list("actor", "actor_kind", "actor_id", "address", "action")) == [
        ("olga", "user", str(User.objects.get().pk), "203.0.113.7", A.APP_PAUSED),
        ("command line", "command", "", Actor.command().address, A.APP_RESUMED),
        ("app Portal", "app", app.app_id, "203.0.113.8", A.APP_PAUSED),
    ]


# --- Sign-ins and accounts -------------------------------------------------------------------------------------------------


def accounts() -> list[tuple[str, str, str]]:
    entries = AuditEntry.objects.filter(action__startswith="user.").order_by("pk")
    return list(entries.values_list("action", "actor", "address"))


def sign_in(name: str, password: str, address: str = "203.0.113.9") -> Client:
    client = Client(REMOTE_ADDR=address)
    client.post("/accounts/login/", {"login": name, "password": password, "next": "/admin/"})
    return client


def test_sign_ins_and_sign_outs(db) -> None:
    User.objects.create_user("anna", password="correct horse", is_staff=True)
    before = len(accounts())
    client = sign_in("anna", "correct horse")
    client.post("/admin/logout/")
    sign_in("anna", "wrong horse")
    sign_in("correct horse", "anna")  # in the wrong fields
    sign_in("a\0b", "x")
    assert accounts()[before:] == [
        (A.SIGN_IN, "anna", "203.0.113.9"),
        (A.SIGN_OUT, "anna", "203.0.113.9"),
        (A.SIGN_IN_FAILED, "anna", "203.0.113.9"),
        (A.SIGN_IN_FAILED, "unknown user", "203.0.113.9"),
    ]
    assert "horse" not in json.dumps(list(AuditEntry.objects.values()), default=str)
    assert {entry.actor_kind for entry in AuditEntry.objects.filter(action=A.SIGN_IN_FAILED)} == {"stranger"}


def test_second_factors(db, django_capture_on_commit_callbacks) -> None:
    anna = User.objects.create_user("anna", password="correct horse", is_staff=True)
    client = sign_in("anna", "correct horse", "203.0.113.7")
    since = AuditEntry.objects.latest("pk").pk
    with django_capture_on_commit_callbacks(execute=True):
        set_up_totp(client)
        client.post("/accounts/security/recovery-codes/new/")
    other = sign_in("anna", "correct horse")
    other.post("/accounts/security/authenticate/", {"code": "000000"})
    client.post("/accounts/security/app/remove/")
    entries = AuditEntry.objects.filter(pk__gt=since, subject="anna", subject_id=str(anna.pk)).order_by("pk")
    assert list(entries.values_list("action", "message", "address")) == [
        (A.SECOND_FACTOR, "Added an authenticator app", "203.0.113.7"),
        (A.SECOND_FACTOR, "Added recovery codes", "203.0.113.7"),
        (A.SECOND_FACTOR, "Added recovery codes", "203.0.113.7"),
        (A.SIGN_IN_FAILED, "Sign-in failed: wrong second-factor code", "203.0.113.9"),
        (A.SECOND_FACTOR, "Removed an authenticator app", "203.0.113.7"),
        (A.SECOND_FACTOR, "Removed recovery codes", "203.0.113.7"),
    ]


def test_own_password_and_sign_in_link(db) -> None:
    User.objects.create_user("anna", password="correct horse", is_staff=True)
    client = sign_in("anna", "correct horse")
    before = len(accounts())
    new = {"old_password": "correct horse", "new_password1": "better horse 1", "new_password2": "better horse 1"}
    assert client.post("/admin/password_change/", new).status_code == 302
    call_command("sign_in_link", "anna", stdout=io.StringIO())
    assert accounts()[before:] == [
        (A.PASSWORD, "anna", "203.0.113.9"),
        (A.SIGN_IN_LINK, "command line", Actor.command().address),
    ]


def test_wrong_password_of_a_signed_in_user(db) -> None:
    User.objects.create_user("anna", password="correct horse", is_staff=True)
    client = sign_in("anna", "correct horse")
    client.post("/accounts/reauthenticate/", {"password": "wrong horse"})
    entry = AuditEntry.objects.latest("pk")
    assert (entry.action, entry.actor_kind, entry.actor) == (A.SIGN_IN_FAILED, "user", "anna")


def test_failed_sign_ins_do_not_fill_the_log(db, monkeypatch) -> None:
    monkeypatch.setattr(sign_ins, "FAILURES_PER_ADDRESS", 3)
    monkeypatch.setattr(sign_ins, "FAILURES_IN_ALL", 5)
    for number in range(4):
        for _ in range(4):
            sign_in("nobody", "x", address=f"203.0.113.{number}")
    addresses = [address for action, _, address in accounts() if action == A.SIGN_IN_FAILED]
    assert addresses == ["203.0.113.0"] * 3 + ["203.0.113.1"] * 2


def test_failed_sign_in_after_others_were_recorded_while_the_clock_was_ahead(db, monkeypatch) -> None:
    monkeypatch.setattr(sign_ins, "FAILURES_IN_ALL", 2)
    ahead = timezone.now() + timedelta(days=365)
    for _ in range(2):
        AuditEntry.objects.create(action=A.SIGN_IN_FAILED, created_at=ahead)
    sign_in("nobody", "x")
    assert [action for action, _, _ in accounts()].count(A.SIGN_IN_FAILED) == 3


def test_end_of_an_idle_session(db, settings) -> None:
    User.objects.create_user("anna", password="correct horse", is_staff=True)
    client = sign_in("anna", "correct horse")
    make_old(client, settings.SESSION_IDLE_SECONDS + 1, "active_at")
    client.get("/admin/")
    entry = AuditEntry.objects.latest("pk")
    assert (entry.action, entry.message, entry.subject) == (A.SIGN_OUT, "Session ended after inactivity", "anna")
    assert (entry.actor, entry.actor_kind, entry.address) == ("Docora", "system", "203.0.113.9")


def test_end_of_a_session_is_recorded_once(db, rf) -> None:
    """Although several requests find it: the user presses the button twice, or several pages are open while it is idle."""
    User.objects.create_user("anna", password="correct horse")
    client = sign_in("anna", "correct horse")
    requests = [rf.post("/admin/logout/") for _ in range(3)]
    for request in requests:
        request.session = SessionStore(client.cookies["sessionid"].value)
        request.user = get_user(request)
    for request in requests:
        logout(request)
    assert [action for action, _, _ in accounts()].count(A.SIGN_OUT) == 1


def test_user_of_a_proxy_without_an_account_is_recorded_once_an_hour(db, proxy: str, monkeypatch) -> None:
    User.objects.create_user("otto", is_active=False)
    before = len(accounts())
    for name in ("mallory", "otto", "mallory", "otto"):
        client = Client(REMOTE_ADDR=proxy, headers={"x-remote-user": name})
        for page in ("/docs/", "/admin/", "/admin/", "/accounts/login/"):
            client.get(page)
    assert accounts()[before:] == [
        (A.SIGN_IN_FAILED, "unknown user", proxy),
        (A.SIGN_IN_FAILED, "otto", proxy),
    ]
    messages = list(AuditEntry.objects.filter(action=A.SIGN_IN_FAILED).order_by("pk").values_list("message", flat=True))
    assert messages == [
        f"Sign-in failed: the proxy's user {name} has no active account" for name in ("mallory", "otto")
    ]
    monkeypatch.setattr(sign_ins, "_HOUR", 0.0)
    Client(REMOTE_ADDR=proxy, headers={"x-remote-user": "mallory"}).get("/admin/")
    assert len(accounts()) == before + 3


def test_accounts_and_roles(db) -> None:
    admin = Client(REMOTE_ADDR="203.0.113.7")
    admin.force_login(User.objects.create_superuser("root"))
    group = Group.objects.create(name="Reviewers")
    before = AuditEntry.objects.latest("pk").pk
    new = {"username": "zoe", "password1": "correct horse 1", "password2": "correct horse 1", "usable_password": "true"}
    assert admin.post("/admin/auth/user/add/", new).status_code == 302
    zoe = User.objects.get(username="zoe")
    page = f"/admin/auth/user/{zoe.pk}/"
    form = {"username": "zoe", "email": "", "is_active": "on", "is_staff": "on", "groups": [group.pk]}
    assert admin.post(f"{page}change/", form).status_code == 302
    form["groups"] = []
    for _ in range(2):  # the second time, nothing changes
        assert admin.post(f"{page}change/", form).status_code == 302
    password = {"password1": "correct horse 2", "password2": "correct horse 2", "usable_password": "true"}
    assert admin.post(f"{page}password/", password).status_code == 302
    chosen = Permission.objects.filter(codename__in=["view_app", "add_user", "view_group"])
    fields = {"name": "Reviewers", "permissions": list(chosen.values_list("pk", flat=True))}
    assert admin.post(f"/admin/auth/group/{group.pk}/change/", fields).status_code == 302
    chosen = {"action": "delete_selected", "_selected_action": [zoe.pk], "post": "yes"}
    assert admin.post("/admin/auth/user/", chosen).status_code == 302
    entries = list(AuditEntry.objects.filter(pk__gt=before).order_by("pk"))
    assert [(entry.action, entry.subject) for entry in entries] == [
        (A.USER_ADDED, "zoe"),
        *[(A.USER_CHANGED, "zoe")] * 2,
        (A.PASSWORD, "zoe"),
        (A.GROUP_CHANGED, "Reviewers"),
        (A.USER_DELETED, "zoe"),
    ]
    assert {(entry.actor, entry.address) for entry in entries} == {("root", "203.0.113.7")}
    assert (entries[0].old, entries[0].new) == ({}, {"Username": "zoe", "password": "added"})
    assert (entries[1].old["Staff status"], entries[1].new["Staff status"]) == (False, True)
    assert (entries[1].old["Groups"], entries[1].new["Groups"]) == ("", "Reviewers")
    assert (entries[2].old, entries[2].new) == ({"Groups": "Reviewers"}, {"Groups": ""})
    assert (entries[3].old, entries[3].new) == ({}, {"password": "changed"})
    assert entries[4].new == {"Permissions": "auth.add_user, auth.view_group, deliveries_app.view_app"}
    assert "correct horse" not in json.dumps([entry.new for entry in entries])
    assert not LogEntry.objects.exists()


def test_accounts_made_by_commands(db) -> None:
    call_command("createsuperuser", "--no-input", username="ops", email="", stdout=io.StringIO())
    ops = User.objects.get()
    ops.set_password("correct horse")
    ops.save()
    ops.check_password("correct horse")
    ops.first_name = "Olga"
    ops.save()
    assert [(action, actor) for action, actor, _ in accounts()] == [
        (A.USER_ADDED, "command line"),
        (A.PASSWORD, "command line"),
    ]
    assert AuditEntry.objects.get(action=A.USER_ADDED).new == {"staff status": True, "superuser status": True}


# --- Append-only -----------------------------------------------------------------------------------------------------------


def add(when: datetime | None = None, action: AuditAction = A.PING, **where: Any) -> AuditEntry:
    entry = audit.entry(Actor.command(), action, where.pop("subject", None), where.pop("message", "Sent a test ping"))
    entry.created_at = when or timezone.now()
    for name, value in where.items():
        setattr(entry, name, value)
    entry.save()
    return entry


def statements() -> list[str]:
    only = ["TRUNCATE {0}"] if connection.vendor == "postgresql" else [
        "INSERT OR REPLACE INTO {0} SELECT * FROM {0}",
        "REPLACE INTO {0} SELECT * FROM {0}",
    ]  # fmt: skip
    return ["UPDATE {0} SET actor = 'nobody'", "UPDATE {0} SET id = id", "DELETE FROM {0}", *only]


def test_database_refuses_changes(db) -> None:
    app = make_app("Portal")
    entry = add(subject=app)
    before = list(AuditEntry.objects.values())

    def save() -> None:
        entry.message = "Nothing happened"
        entry.save()

    attempts: list[Callable[[], object]] = [
        *(partial(connection.cursor().execute, statement.format(TABLE)) for statement in statements()),
        save,
        entry.delete,
        AuditEntry.objects.all().delete,
        partial(AuditEntry.objects.update, message="x"),
        partial(
            AuditEntry.objects.bulk_create, [entry], update_conflicts=True, update_fields=["actor"], unique_fields=["id"]
        ),
    ]  # fmt: skip
    for attempt in attempts:
        pk = entry.pk
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            attempt()
        entry = AuditEntry.objects.get(pk=pk)
    assert list(AuditEntry.objects.values()) == before
    app.delete()
    User.objects.all().delete()
    assert list(AuditEntry.objects.values()) == before, "rows that an entry names can be deleted, and the entry stays"
    assert append_only.is_protected(connection, TABLE)


def test_only_retention_deletes_and_only_what_is_old(db) -> None:
    old, recent = add(timezone.now() - timedelta(days=40)), add()
    border = timezone.now() - timedelta(days=30)
    with pytest.raises(IntegrityError), append_only.deletes_before(connection, TABLE, border):
        recent.delete()
    recent.refresh_from_db()
    with transaction.atomic():  # a caller that catches the error does not keep the permission
        with pytest.raises(ZeroDivisionError), append_only.deletes_before(connection, TABLE, border):
            raise ZeroDivisionError
        with pytest.raises(IntegrityError), transaction.atomic():
            old.delete()
    with append_only.deletes_before(connection, TABLE, border):
        AuditEntry.objects.filter(pk=old.pk).delete()
    assert not AuditEntry.objects.filter(pk=old.pk).exists()
    old = add(timezone.now() - timedelta(days=40))
    with pytest.raises(IntegrityError), transaction.atomic():
        old.delete()


@pytest.mark.django_db(transaction=True)
def test_other_connections_cannot_delete_meanwhile() -> None:
    old = add(timezone.now() - timedelta(days=40))

    def delete() -> str:
        try:
            with connection.cursor() as cursor:
                if connection.vendor == "sqlite":
                    cursor.execute("PRAGMA busy_timeout = 100")  # the writer below holds the only lock
                cursor.execute(f"DELETE FROM {TABLE}")
        except Exception as error:
            return str(error)
        return "deleted"

    with append_only.deletes_before(connection, TABLE, timezone.now()):
        [said] = in_threads(delete)
    assert ("append-only" if connection.vendor == "postgresql" else "database is locked") in said
    assert in_threads(delete) != ["deleted"]
    with pytest.raises(IntegrityError):
        old.delete()
    assert AuditEntry.objects.filter(pk=old.pk).exists()


def test_retention(db, settings) -> None:
    for days in (800, 731, 729):
        add(timezone.now() - timedelta(days=days))
    settings.AUDIT_RETENTION_DAYS = 0
    assert prune()["audit_entries"] == 0
    settings.AUDIT_RETENTION_DAYS = 730
    assert prune(dry_run=True)["audit_entries"] == 2
    assert prune()["audit_entries"] == 2
    assert AuditEntry.objects.filter(action=A.PING).count() == 1
    assert prune()["audit_entries"] == 0


def test_dump_and_load(db, tmp_path) -> None:
    """Loading an account is not recorded: the entries that are loaded already say who added it."""
    User.objects.create_user("olga")
    add(subject=make_app("Portal"), old={"a": 1}, new={"a": "=2"})
    before = list(AuditEntry.objects.order_by("pk").values())
    file = tmp_path / "entries.json"
    call_command("dumpdata", "auth.user", "deliveries_app.auditentry", output=str(file))
    with append_only.deletes_before(connection, TABLE, datetime(9999, 1, 1, tzinfo=UTC)):
        AuditEntry.objects.all().delete()
    User.objects.all().delete()
    call_command("loaddata", str(file), verbosity=0)
    assert [row | {"created_at": None} for row in AuditEntry.objects.order_by("pk").values()] == [
        row | {"created_at": None} for row in before
    ]
    add()


# --- Pages and export ------------------------------------------------------------------------------------------------------


@pytest.fixture
def auditor(db) -> Client:
    return staff("vera", "view_auditentry", "view_app", "view_apprepository")


def found(client: Client, query: str = "") -> list[str]:
    """Return the messages that the list shows, without sign-ins and accounts."""
    context: Any = client.get(f"{LIST}{query}").context
    return [entry.message for entry in context["cl"].result_list if not entry.action.startswith("user.")]


def test_list_filters_and_searches(auditor: Client, watches) -> None:
    portal, search = watches[0].app, watches[2].app
    olga = Actor.of_user(User.objects.create_superuser("olga"), address="203.0.113.7")
    services.pause_watches(olga, AppRepository.objects.filter(pk=watches[0].pk))
    tokens.rotate_app_token(Actor.of_app(search, address="2001:db8::1"), search)
    run = services.resync_single(Actor.command(), watches[2])
    operation = services.resync_many(olga, AppRepository.objects.filter(pk=watches[1].pk), reason="Broken disk")
    gone = {
        "app_id": f"app_{'0' * 24}",
        "app_name": "Gone",
        "operation_id": f"bulk_{'0' * 24}",
        "address": "203.0.113.70",
    }
    add(datetime(2024, 5, 6, tzinfo=UTC), message="Long ago", actor="paul", **gone)
    resync, long_ago = f"Re-sync of {watches[2]}", ["Long ago"]
    bulk = f"Re-sync, {operation.operation_id}"
    everything = [bulk, resync, "Rotated the token", "Paused", "Long ago"]
    for query, expected in {
        "": everything,
        f"?app={portal.pk}": [bulk, "Paused"],
        "?app_name=sea": [resync, "Rotated the token"],
        f"?app_name={search.app_id}": [resync, "Rotated the token"],
        "?app_name=gon": long_ago,
        f"?app_name=app_{'0' * 24}": long_ago,
        "?actor=olga": [bulk, "Paused"],
        "?actor=olg": [],
        "?actor=command+line": [resync],
        "?action=+Token+rotated+": ["Rotated the token"],
        "?action=sync.resync": [bulk, resync],
        "?action=nonsense": [],
        "?until=2024-05-06": long_ago,
        "?from=2024-05-07": everything[:-1],
        "?actor=olga&action=re-sync&app=" + str(portal.pk): [bulk],
        f"?q={run.run_id}": [resync],
        f"?q={operation.operation_id}": [bulk],
        f"?q=bulk_{'0' * 24}": long_ago,
        f"?q=app_{'0' * 24}": long_ago,
        "?q=PAUL": long_ago,
        "?q=203.0": [bulk, "Paused", "Long ago"],
        "?q=rotated": ["Rotated the token"],
        f"?q={watches[0].repository.repository_id}": [resync, "Paused"],
        "?q=203.0.113.7": [bulk, "Paused"],
        "?q=2001:db8::1": ["Rotated the token"],
        "?q=broken": [bulk],
        "?q=acme/site": [bulk],
    }.items():
        assert found(auditor, query) == expected, query


def test_entry_links_to_its_own_operation(watches) -> None:
    chosen = (AppRepository.objects.filter(pk=watch.pk) for watch in watches[:2])
    first, second = (services.resync_many(Actor.command(), rows) for rows in chosen)
    entry = AuditEntry.objects.filter(operation_id=second.operation_id).latest("pk")
    page = staff("vera", "view_auditentry", "view_bulkoperation").get(f"{LIST}{entry.pk}/change/").text
    assert f"/bulkoperation/{second.pk}/change/" in page
    assert f"/bulkoperation/{first.pk}/change/" not in page


def test_entry_links_only_to_pages_that_the_user_can_view(auditor: Client, watches) -> None:
    services.pause_watches(Actor.command(), AppRepository.objects.filter(pk=watches[2].pk))
    entry = AuditEntry.objects.latest("pk")
    page = auditor.get(f"{LIST}{entry.pk}/change/").text
    assert f"/apprepository/{watches[2].pk}/change/" in page
    assert f"/apprepository/{watches[0].pk}/change/" not in page, "the same repository of another app"
    assert f"/app/{watches[2].app_id}/change/" in page
    assert f"/repository/{watches[2].repository_id}/change/" not in page


def test_log_of_a_row_links_to_the_list_and_hides_what_the_user_cannot_view(watches) -> None:
    operation = services.resync_many(Actor.command(), AppRepository.objects.filter(pk=watches[0].pk), reason="Lost")
    app, repository, run = watches[0].app, watches[0].repository, operation.runs.get()
    root = Client()
    root.force_login(User.objects.create_superuser("root"))
    for page, query in {
        f"deliveries_app/apprepository/{watches[0].pk}": f"app={app.pk}&amp;q={repository.repository_id}",
        f"deliveries_app/bulkoperation/{operation.pk}": f"q={operation.operation_id}",
        f"deliveries_app/syncrun/{run.pk}": f"q={run.run_id}",
        f"repositories_app/repository/{repository.pk}": f"q={repository.repository_id}",
    }.items():
        assert f'href="{LIST}?{query}"' in root.get(f"/admin/{page}/history/").text, page
    group = Group.objects.create(name="Reviewers")
    assert f"{LIST}?" not in root.get(f"/admin/auth/group/{group.pk}/history/").text
    reader = staff("rita", "view_repository")
    page = reader.get(f"/admin/repositories_app/repository/{repository.pk}/history/").text
    assert LIST not in page
    assert "Lost" not in page
    assert "No entries in the audit log." in page
    assert reader.get("/admin/repositories_app/repository/0/history/").status_code == 302


def test_log_of_a_row_lists_the_values_that_the_message_lacks(auditor: Client, db) -> None:
    app = make_app("Portal")
    add(subject=app, new={"concurrent requests": 7})
    add(subject=app, old={"concurrent requests": 6}, new={"concurrent requests": 5}, message="Requests: 6 → 5")
    add(
        subject=app,
        new={"token": "removed", "new signing key": "added"},
        message="Token: removed; new signing key: added",
    )
    page: Any = auditor.get(f"/admin/deliveries_app/app/{app.pk}/history/")
    listed = [entry.changes_not_in_message for entry in page.context["page"]]
    assert listed == [[], [], [("concurrent requests", None, 7)]]


def test_entries_about_all_syncing_and_a_single_app(db) -> None:
    app, olga = make_app("Portal"), Actor.of_user(User.objects.create_superuser("olga"))
    services.pause_syncing(olga)
    assert by_users().get().subject == "All syncing"
    operation = BulkOperation.objects.create(app=app, title="Re-sync", total=1)
    assert audit.entry(olga, A.CANCEL, operation, "Cancelled").app_id == app.app_id


def test_entry_of_a_newer_version(auditor: Client, db) -> None:
    entry = add(action="app.frozen")
    assert "app.frozen <code>app.frozen</code>" in auditor.get(f"{LIST}{entry.pk}/change/").text


def test_pages_of_rows_show_their_entries(auditor: Client, watches) -> None:
    watch = watches[0]
    app = watch.app
    services.pause_watches(Actor.command(), AppRepository.objects.filter(pk=watch.pk))
    app.base_url = "https://new.example"
    services.change_app(Actor.of_user(User.objects.create_superuser("olga"), address="203.0.113.7"), app, ["base_url"])
    page = auditor.get(f"/admin/deliveries_app/app/{app.pk}/history/").text
    for text in ("Paused", "acme/docs", "olga", "203.0.113.7", "https://new.example", f"{LIST}?app={app.pk}"):
        assert text in page, text
    assert 'aria-current="page">Audit log</a>' in page
    page = auditor.get(f"/admin/deliveries_app/apprepository/{watch.pk}/history/").text
    assert "Paused" in page
    assert "new.example" not in page
    entry = AuditEntry.objects.get(action=A.APP_CHANGED)
    page = auditor.get(f"{LIST}{entry.pk}/change/").text
    for text in (
        "App changed",
        "https://x.example",
        "https://new.example",
        f"/admin/deliveries_app/app/{app.pk}/change/",
    ):
        assert text in page, text
    AppRepository.objects.all().delete()
    App.objects.all().delete()
    page = auditor.get(f"{LIST}{entry.pk}/change/").text
    assert "Portal" in page
    assert "/None/" not in page
    assert "Portal" in auditor.get(LIST).text


def test_log_cannot_be_edited_and_needs_permissions(auditor: Client, db) -> None:
    entry = add()
    for path in ("add/", f"{entry.pk}/delete/"):
        for method in (auditor.get, auditor.post):
            assert method(f"{LIST}{path}", {"post": "yes"}).status_code == 403
    assert auditor.post(f"{LIST}{entry.pk}/change/", {"message": "x"}).status_code == 200
    entry.refresh_from_db()
    assert entry.message == "Sent a test ping"
    assert "Export CSV" not in auditor.get(LIST).text
    assert auditor.get(f"{LIST}export/").status_code == 403
    other = staff("victor", "view_app", "export_auditentry")
    for path in ("", "export/", f"{entry.pk}/change/"):
        assert other.get(f"{LIST}{path}").status_code == 403
    exporter = staff("xenia", "view_auditentry", "export_auditentry")
    assert "Export CSV" in exporter.get(LIST).text
    assert exporter.post(f"{LIST}export/").status_code == 405


def test_export(db) -> None:
    app = make_app("=HYPERLINK(1)")
    entry = add(
        subject=app, action=A.APP_CHANGED, message="@SUM(A1)", reason="+1", actor="-olga", old={"name": "=1"}, new={}
    )
    add(message="Other")
    exporter = staff("xenia", "view_auditentry", "export_auditentry")
    answer = exporter.get(f"{LIST}export/?action=app.changed")
    assert answer.streaming
    assert "docora-audit-log-" in answer["Content-Disposition"]
    [row] = csv.DictReader(io.StringIO(b"".join(answer).decode(), newline=""))
    shown = [row[name] for name in ("actor", "message", "reason", "subject", "app", "old", "new")]
    name = "'=HYPERLINK(1)"
    assert shown == ["'-olga", "'@SUM(A1)", "'+1", name, name, '{"name": "=1"}', ""]
    assert (row["action"], row["app_id"], row["time"]) == (
        "app.changed", app.app_id, entry.created_at.isoformat(timespec="seconds"),
    )  # fmt: skip


def test_watch_without_entries(auditor: Client, db) -> None:
    watch = make_watch(make_app("Portal"), "docs")
    page = auditor.get(f"/admin/deliveries_app/apprepository/{watch.pk}/history/").text
    assert "No entries in the audit log." in page
