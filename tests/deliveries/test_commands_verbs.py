"""Commands for the actions of the admin. Each calls the same service and has JSON output."""

import io
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Delivery, Status, SyncPause, SyncRun
from deliveries_app.models.root_causes import RootCause
from deliveries_app.reports import status
from deliveries_app.services import (
    current_pause,
    pause_syncing,
    resume_syncing,
    resync_by_app,
    resync_single,
    unwatch_repository,
)
from deliveries_app.services.tokens import authenticate, live_tokens
from docora.redis import heartbeat
from docora.text import format_time
from repositories_app.models import HostOutage
from tests.support.commands import PROJECT, run, run_json
from tests.support.doctor import start_worker
from tests.support.receiver import Answer
from tests.support.staff import fail, make_app
from tests.support.valkey import ValkeyServer
from tests.support.world import World


@pytest.fixture
def typed(monkeypatch):
    """Set the command's stdin."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def ids_of(watch: AppRepository) -> list[str]:
    return [watch.app.app_id, watch.repository.repository_id]


def test_cancel_an_operation_or_a_request(watches) -> None:
    operation = resync_by_app(Actor.command(), watches[0].app)
    assert run_json("cancel", operation.operation_id) == {"cancelled": 2}
    assert run("cancel", operation.operation_id) == "There was nothing to cancel.\n"
    run_of = resync_single(Actor.command(), watches[2])
    assert run_json("cancel", *ids_of(watches[2])) == {"cancelled": 1}
    run_of.refresh_from_db()
    assert run_of.outcome == "cancelled"


def test_pause_and_resume_all_syncing(watches) -> None:
    assert run_json("pause_syncing") == {"app_id": None, "paused": True}
    assert current_pause()
    assert "Syncing is resumed" in run("resume_syncing")
    assert current_pause() is None
    assert "was not paused" in run("resume_syncing")


def test_pause_and_resume_one_app(watches) -> None:
    app = watches[0].app
    assert run_json("pause_syncing", app.app_id) == {"app_id": app.app_id, "paused": True}
    assert dict(App.objects.values_list("name", "paused")) == {"Portal": True, "Search": False}
    run("pause_syncing")
    assert "All syncing is still paused" in run("resume_syncing", app.app_id)
    assert not App.objects.filter(paused=True).exists()


def test_pause_and_resume_one_repository(watches) -> None:
    ids = dict(zip(("app_id", "repository_id"), ids_of(watches[0]), strict=True))
    assert run_json("pause_syncing", *ids.values()) == {**ids, "paused": True}
    assert list(AppRepository.objects.exclude(paused_at=None)) == [watches[0]]
    App.objects.update(paused=True)
    assert "Its app is still paused" in run("resume_syncing", *ids.values())
    assert not AppRepository.objects.exclude(paused_at=None).exists()
    run("pause_syncing")
    assert "All syncing is still paused" in run("resume_syncing", *ids.values())


@pytest.mark.parametrize(
    ("name", "count", "question"),
    [("unwatch_repository", 2, "no longer receive acme/docs"), ("delete_app", 1, "watches 2 repositories")],
)
def test_irreversible_commands_ask_for_confirmation(watches, name: str, count: int, question: str) -> None:
    with pytest.raises(CommandError, match=f"{question}.*Add --yes") as refused:
        run(name, *ids_of(watches[0])[:count])
    assert refused.value.returncode == 2
    assert AppRepository.objects.alive().count() == 3


def test_delete_app_names_repositories_that_no_other_app_watches(watches) -> None:
    """Portal watches acme/docs, which Search watches too, and another repository."""
    portal, search = watches[0].app.app_id, watches[2].app.app_id
    with pytest.raises(CommandError, match=r"It watches 2 repositories; no other app watches 1 of them\. "):
        run("delete_app", portal)
    with pytest.raises(CommandError, match=r"It watches 1 repository, which other apps watch too\. "):
        run("delete_app", search)
    run("delete_app", search, "--yes")
    with pytest.raises(CommandError, match=r"It watches 2 repositories; no other app watches them\. "):
        run("delete_app", portal)


def test_unwatch_repository_ends_one_watch(watches) -> None:
    printed = run_json("unwatch_repository", *ids_of(watches[0]), "--yes")
    assert printed == dict(zip(("app_id", "repository_id"), ids_of(watches[0]), strict=True))
    assert list(AppRepository.objects.alive()) == [watches[1], watches[2]]


def test_unwatch_repository_names_what_it_deletes(watches) -> None:
    """Both apps watch acme/docs. Only Portal watches acme/site."""
    docs, site, _ = watches
    fields: dict[str, Any] = {"mode": "100644", "kind": "create", "sha": "0" * 64, "size": 1, "sequence": 1}
    fields |= {"generation": 1, "acknowledged": True, "updated_at": timezone.now()}
    Delivery.objects.bulk_create(
        Delivery(watch=watch, path=path, **fields)
        for watch, path in ((docs, "a.txt"), (site, "a.txt"), (site, "b.txt"))
    )
    with pytest.raises(CommandError, match=r"This deletes 1 delivery record\. .*Add --yes") as of_docs:
        run("unwatch_repository", *ids_of(docs))
    assert "mirror" not in str(of_docs.value)
    with pytest.raises(
        CommandError, match=r"deletes 2 delivery records\. No other app watches it, so its mirror is deleted"
    ):
        run("unwatch_repository", *ids_of(site))


def test_delete_app_ends_the_app_and_its_watches(watches) -> None:
    app = watches[0].app
    assert run_json("delete_app", app.app_id, "--yes") == {"app_id": app.app_id, "watches": 2}
    assert list(AppRepository.objects.alive()) == [watches[2]]
    assert [line.split("\t")[1] for line in run("list_apps").splitlines()] == ["Search"]
    with pytest.raises(CommandError, match="There is no app"):
        run("delete_app", app.app_id, "--yes")


def test_rotate_token_keeps_the_old_token_valid(watches) -> None:
    app = watches[0].app
    printed = run_json("rotate_token", app.app_id)
    assert set(printed) == {"app_id", "token", "old_accepted_until"}
    assert authenticate(printed["token"]) == app
    assert live_tokens(app).count() == 2
    printed_text = run("rotate_token", app.app_id)
    newest = live_tokens(app).order_by("-pk")
    assert re.search(r"^  (\S+)$", printed_text, re.MULTILINE)[1].endswith(newest[0].ending)
    assert f"The old token is valid until {format_time(newest[1].expires_at)}." in printed_text


def test_rotate_token_without_overlap(watches) -> None:
    app = watches[0].app
    with pytest.raises(CommandError, match=r"will be revoked now.*Add --yes"):
        run("rotate_token", app.app_id, "--overlap-hours", "0")
    assert run_json("rotate_token", app.app_id, "--overlap-hours", "0", "--yes")["old_accepted_until"] is None
    assert live_tokens(app).count() == 1
    with pytest.raises(CommandError, match="0 to 30 days"):
        run("rotate_token", app.app_id, "--overlap-hours", "800")


def test_rotate_key_step_by_step(world: World, typed) -> None:
    app_id, old = world.app.app_id, world.app.client_auth_key
    typed("the-key-that-comes-next\n")
    started = run_json("rotate_key", app_id, "--client-auth-key-stdin")
    assert started == {"app_id": app_id, "step": "started", "client_auth_key": "the-key-that-comes-next"}
    with pytest.raises(CommandError, match="hasn't accepted the new key yet"):
        run("rotate_key", app_id, "--retire")
    with pytest.raises(CommandError, match="rejected the new key") as refused:
        run("ping_app", app_id, "--new-key")
    assert refused.value.returncode == 1
    world.receiver.keys = "the-key-that-comes-next"
    printed = run_json("ping_app", app_id, "--new-key")
    assert (printed["app_id"], printed["delivered"], printed["status"], printed["new_key"]) == (app_id, True, 200, True)
    assert run_json("rotate_key", app_id, "--retire") == {"app_id": app_id, "step": "retired"}
    assert App.objects.get(app_id=app_id).client_auth_key == "the-key-that-comes-next" != old
    with pytest.raises(CommandError, match=r"has no new key\. Use rotate_key"):
        run("ping_app", app_id, "--new-key")


def test_rotate_key_cancel_discards_the_new_key(watches) -> None:
    app = watches[0].app
    assert run_json("rotate_key", app.app_id)["client_auth_key"].startswith("whsec_")
    assert run_json("rotate_key", app.app_id, "--cancel") == {"app_id": app.app_id, "step": "cancelled"}
    with pytest.raises(CommandError, match="No key rotation is in progress"):
        run("rotate_key", app.app_id, "--cancel")


def test_rejected_ping_exits_with_1_and_a_hint(world: World) -> None:
    assert "accepted the ping (HTTP 200)" in run("ping_app", world.app.app_id)
    world.answer(lambda _: Answer(500))
    with pytest.raises(CommandError, match=r"The app returned HTTP 500\. The app failed to handle the ping"):
        run("ping_app", world.app.app_id)


def test_reset_circuit_makes_every_watch_due(watches) -> None:
    repository = watches[0].repository
    repository.circuit_open_until = "2099-01-01T00:00Z"
    repository.save()
    printed = run_json("reset_circuit", repository.repository_id)
    assert printed == {"repository_id": repository.repository_id, "woken": 2}
    repository.refresh_from_db()
    assert repository.circuit_open_until is None
    assert "It is now due for 2 apps." in run("reset_circuit", repository.repository_id)


def test_replace_github_token_checks_the_new_token(world: World, typed) -> None:
    repo = world.git.repo("acme/private", {"a": b"a"}, token="sesame")
    watch = world.watch_url(repo, token="sesame")
    typed("wrong\n")
    with pytest.raises(CommandError, match="The git host rejected the token"):
        run("replace_github_token", *ids_of(watch))
    typed("sesame\n")
    assert run_json("replace_github_token", *ids_of(watch))["app_id"] == world.app.app_id
    assert AppRepository.objects.get().github_token == "sesame"


def test_replace_github_token_removes_the_token_only_with_remove(world: World, typed) -> None:
    repo = world.git.repo("acme/public", {"a": b"a"})
    watch = world.watch_url(repo, token="sesame")
    typed("\n")
    with pytest.raises(CommandError, match=r"There is no token on stdin\."):
        run("replace_github_token", *ids_of(watch))
    assert AppRepository.objects.get().github_token == "sesame"
    assert "Removed the token of acme/public" in run("replace_github_token", *ids_of(watch), "--remove")
    assert AppRepository.objects.get().github_token == ""


def test_explain_a_file(world: World) -> None:
    _, watch = world.watch({"a.txt": b"a"})
    world.sync(watch)
    printed = run_json("explain", *ids_of(watch), "a.txt")
    assert (printed["path"], printed["state"], printed["next"]) == ("a.txt", "delivered", None)
    assert printed["message"] in run("explain", *ids_of(watch), "a.txt")
    assert run_json("explain", *ids_of(watch), "none.txt")["state"] == "absent"
    assert run_json("explain", *ids_of(watch), "")["state"] == "absent"
    fail(watch, RootCause.SERVER_ERROR)
    AppRepository.objects.update(next_sync_at=(later := timezone.now() + timedelta(hours=1)))
    Delivery.objects.update(acknowledged=False, sha="0" * 64)
    assert run("explain", *ids_of(watch), "a.txt").endswith(f" at {format_time(later)}.\n")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (["pause_syncing", ""], "There is no app"),
        (["pause_syncing", "APP", ""], "does not watch"),
        (["resume_syncing", "APP", ""], "does not watch"),
        (["resync", "APP", "", "--yes"], "does not watch"),
        (["resync", "APP", "\udcff", "--yes"], "does not watch"),
        (["retry", ""], "There is no app"),
        (["cancel", "APP", ""], "does not watch"),
        (["list_watches", ""], "There is no app"),
        (["status", ""], "There is no app"),
        (["unwatch_repository", "APP", "", "--yes"], "does not watch"),
    ],
)
def test_empty_id_does_not_mean_all(watches, line: list[str], problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        run(*(watches[0].app.app_id if word == "APP" else word for word in line))
    assert current_pause() is None
    assert not SyncRun.objects.exists()
    assert not App.objects.filter(paused=True).exists()


def test_status_with_failures_exits_with_1(watches) -> None:
    printed_text = run("status")
    assert "Watched repositories: 3; failing: 0;" in printed_text
    assert "Of those due" not in printed_text
    AppRepository.objects.update(next_sync_at=timezone.now(), paused_at=timezone.now())
    printed_text = run("status")
    assert "syncing: 0; due: 3." in printed_text, "paused ones are not queued"
    assert "Of those due, 3 are paused or on hold." in printed_text
    assert "was paused by" not in printed_text
    pause_syncing(Actor.command())
    assert f"All syncing was paused by command line at {format_time(current_pause().since)}." in run("status")
    resume_syncing(Actor.command())
    AppRepository.objects.update(next_sync_at=None, paused_at=None)
    fail(watches[0], RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    AppRepository.objects.filter(pk=watches[1].pk).update(
        status=Status.SCANNING, lease_until=timezone.now() + timedelta(seconds=20)
    )
    text, out = io.StringIO(), io.StringIO()
    for options, stdout in [((), text), (("--json",), out)]:
        with pytest.raises(SystemExit) as ended:
            call_command("status", *options, stdout=stdout)
        assert ended.value.code == 1
    assert "failing: 1 (1 waits for the next check); syncing: 1" in text.getvalue()
    printed = json.loads(out.getvalue())
    numbers = {name: printed[name] for name in ("paused", "watches", "failing", "given_up", "syncing", "waiting")}
    assert numbers == {"paused": False, "watches": 3, "failing": 1, "given_up": 1, "syncing": 1, "waiting": 1}
    failing, syncing = printed["lines"]
    assert (failing["state"], failing["root_cause"], failing["app_name"]) == ("failed", "http_5xx", "Portal")
    assert (syncing["state"], syncing["next"]) == ("syncing", "Syncing now")


def test_status_says_that_a_part_is_not_running(db, redis_client, valkey_server: ValkeyServer) -> None:
    stopped = "A part of Docora is not running. To find out which, run manage.py doctor."
    heartbeat.beat()
    assert stopped in run("status"), "no worker"
    start_worker(redis_client)
    assert stopped not in run("status")
    redis_client.delete("docora:heartbeat:sweep")
    assert stopped in run("status"), "no sweep"
    valkey_server.stop()
    printed = run("status")
    assert "Redis isn't responding or rejects writes." in printed
    assert stopped not in printed


def test_status_of_a_failed_watch_that_is_paused(watches) -> None:
    """It was said to wait for the next check, and in the same output to continue when syncing is resumed."""
    fail(watches[0], RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    SyncPause.objects.create(paused_by="anna")
    text = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("status", stdout=text)
    assert "failing: 1; syncing: 0" in text.getvalue()
    assert "Continues when syncing is resumed" in text.getvalue()


def test_status_says_what_a_watch_on_hold_waits_for(watches) -> None:
    """During the outage of a git host, it said "On hold" without a reason, and nothing if no sync was due."""
    now = timezone.now()
    assert "git host" not in run("status")
    HostOutage.objects.create(host="https://github.com/", since=now, retry_at=now + timedelta(minutes=4), error="Down.")
    assert "1 git host is down: github.com. Its repositories are neither checked nor synced until it responds." in run(
        "status"
    )
    HostOutage.objects.create(host="https://git.example/", since=now, retry_at=now, error="Down.")
    assert "2 git hosts are down: git.example, github.com. Their repositories are" in run("status")
    AppRepository.objects.filter(pk=watches[0].pk).update(next_sync_at=now)
    [row] = [line.split("\t") for line in run("status").splitlines() if "\t" in line]
    assert row[3] == "On hold (git host unreachable)"


def test_status_lists_failing_then_syncing_then_waiting(watches) -> None:
    fail(watches[2], RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    AppRepository.objects.filter(pk=watches[1].pk).update(status=Status.SCANNING)
    for waiting in (Status.SYNCED, Status.PENDING):
        AppRepository.objects.filter(pk=watches[0].pk).update(status=waiting, next_sync_at=timezone.now())
        lines = status.read_status(None, 2).lines
        assert [line.watch.pk for line in lines] == [watches[2].pk, watches[1].pk], waiting


def test_status_leaves_out_what_is_no_longer_watched(watches) -> None:
    fail(watches[0], RootCause.SERVER_ERROR, status=500, state=Status.FAILED)
    unwatch_repository(Actor.command(), watches[0])
    printed = run_json("status")
    assert (printed["watches"], printed["failing"], printed["lines"]) == (2, 0, [])


@pytest.mark.parametrize("limit", ["-1", "99999999999999999999", "few"])
def test_status_with_an_invalid_limit(db, limit: str) -> None:
    with pytest.raises(CommandError, match="--limit: must be a number from 0 to 1,000,000"):
        run("status", f"--limit={limit}")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("onboard_app", ["Portal", "https://portal.example/hooks", "ops@portal.example", "--client-auth-key-stdin"]),
        ("rotate_key", ["APP", "--client-auth-key-stdin"]),
        ("watch_repository", ["APP", "https://github.com/acme/docs", "--github-token-stdin"]),
    ],
)
def test_empty_stdin_is_not_accepted_as_a_secret(db, typed, command: str, arguments: list[str]) -> None:
    app = make_app("Search")
    typed("")
    with pytest.raises(CommandError, match=r"There is no (key|token) on stdin\.") as refused:
        run(command, *(app.app_id if argument == "APP" else argument for argument in arguments))
    assert refused.value.returncode == 2
    app.refresh_from_db()
    assert (App.objects.count(), app.is_rotating_key, AppRepository.objects.count()) == (1, False, 0)


def test_status_of_watches_with_an_unfinished_import(watches) -> None:
    assert (run_json("status")["arriving"], "import" in run("status")) == (0, False)
    portal = AppRepository.objects.filter(app=watches[0].app)
    AppRepository.objects.update(next_sync_at=timezone.now())
    portal.filter(pk=watches[0].pk).update(arriving=True)
    printed = run_json("status")
    assert (printed["watches"], printed["waiting"], printed["arriving"]) == (3, 2, 1)
    [line] = [line for line in printed["lines"] if line["next"] == "Starts when its records are imported"]
    assert [line["app_id"], line["repository_id"]] == ids_of(watches[0])
    assert line["state"] == "queued"
    assert "1 of them waits for the rest of the import. If none is running, run manage.py import_docora again." in run(
        "status"
    )
    portal.update(arriving=True)
    assert "2 of them wait for the rest of the import" in run("status", watches[0].app.app_id)
    assert "import" not in run("status", watches[2].app.app_id)


def test_status_of_one_app(watches) -> None:
    fail(watches[0], RootCause.SERVER_ERROR)
    assert "Watched repositories: 1; failing: 0" in run("status", watches[2].app.app_id)
    with pytest.raises(SystemExit):
        run("status", watches[0].app.app_id)


def test_list_apps_counts_watches(watches) -> None:
    run("unwatch_repository", *ids_of(watches[1]), "--yes")
    fail(watches[0], RootCause.SERVER_ERROR)
    portal, search = (json.loads(line) for line in run("list_apps", "--json").splitlines())
    assert (portal["name"], portal["watches"], portal["failing"], portal["paused"]) == ("Portal", 1, 1, False)
    assert (search["app_id"], search["watches"], search["failing"]) == (watches[2].app.app_id, 1, 0)
    assert [line.split("\t")[:2] for line in run("list_apps").splitlines()] == [
        [portal["app_id"], "Portal"],
        [search["app_id"], "Search"],
    ]


def test_list_watches_of_all_apps_of_one_app_and_failing(watches) -> None:
    fail(watches[1], RootCause.SERVER_ERROR)
    lines = [json.loads(line) for line in run("list_watches", "--json").splitlines()]
    assert [[line["app_id"], line["repository_id"]] for line in lines] == [ids_of(watch) for watch in watches]
    found = [line.split("\t")[:2] for line in run("list_watches", watches[0].app.app_id).splitlines()]
    assert found == [ids_of(watches[0]), ids_of(watches[1])]
    assert [line.split("\t")[1] for line in run("list_watches", "--failing").splitlines()] == [ids_of(watches[1])[1]]
    AppRepository.objects.filter(pk=watches[0].pk).update(next_sync_at=timezone.now(), paused_at=timezone.now())
    states = [line.split("\t")[3] for line in run("list_watches").splitlines()]
    assert states == ["Paused (the repository is paused)", "Retrying", "Up to date"]


@pytest.mark.parametrize("name", ["list_apps", "list_watches"])
def test_list_to_a_closed_pipe_exits_quietly(watches, instance_environment: dict[str, str], name: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    call = [sys.executable, str(PROJECT / "manage.py"), name]
    with os.fdopen(writing, "wb") as gone:
        done = subprocess.run(
            call, env=instance_environment, stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")
