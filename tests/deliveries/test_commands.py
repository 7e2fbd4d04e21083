"""`onboard_app`, `watch_repository`, `resync` and `sweep`, which scripts rely on."""

import io
import json

import pytest
from django.core.management import CommandError
from django.utils import timezone

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, AppRepositoryQuerySet
from deliveries_app.reports import impact
from deliveries_app.services import unwatch_repository
from deliveries_app.sweep import head_checks
from docora.security.crypto import hash_token
from tests.support.commands import run
from tests.support.world import World


def test_onboard_app_prints_the_id_and_both_secrets_once(world: World) -> None:
    printed = json.loads(run("onboard_app", "Search", "https://search.example/hooks", "ops@search.example", json=True))
    assert set(printed) == {"app_id", "token", "client_auth_key", "created_at"}
    app = App.objects.get(app_id=printed["app_id"])
    assert app.tokens.get().digest == hash_token(printed["token"])
    assert app.client_auth_key == printed["client_auth_key"]


def test_onboard_app_without_json_prints_the_same_for_people(db) -> None:
    printed = run("onboard_app", "Search", "https://search.example/hooks", "ops@search.example")
    app = App.objects.get()
    first, *lines = printed.splitlines()
    assert first == "Search is registered. Save these values; they are not shown again:"
    values = dict(line.split() for line in lines)
    assert (values["app_id"], hash_token(values["token"])) == (app.app_id, app.tokens.get().digest)
    assert (values["client_auth_key"], list(values)[3:]) == (app.client_auth_key, ["created_at"])


def test_onboard_app_reads_the_key_from_stdin(world: World, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a-key-from-elsewhere\n"))
    arguments = ("Search", "https://search.example/hooks", "ops@search.example", "--client-auth-key-stdin", "--json")
    assert json.loads(run("onboard_app", *arguments))["client_auth_key"] == "a-key-from-elsewhere"
    assert App.objects.get(name="Search").client_auth_key == "a-key-from-elsewhere"


def test_onboard_app_warns_of_a_name_that_is_taken(world: World) -> None:
    err = io.StringIO()
    name = world.app.name.upper()
    printed = json.loads(run("onboard_app", name, "https://x.example/hooks", "ops@x.example", "--json", stderr=err))
    assert App.objects.get(app_id=printed["app_id"]).name == name
    assert err.getvalue() == f"Another app is already named {name}. Rename one so you can tell them apart.\n"
    App.objects.update(ended_at=timezone.now())
    err = io.StringIO()
    run("onboard_app", name, "https://x.example/hooks", "ops@x.example", stderr=err)
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ab", "https://x.example", "a@b.example"), "3 to 100 printable characters"),
        (("Search", "ftp://x.example", "a@b.example"), "must start with https://"),
        (("Search", "https://u:p@x.example", "a@b.example"), "must not contain credentials"),
        (("Search", "https://x.example", "nobody"), "email address is malformed"),
        (
            ("Search", "https://x.example", "a@b.example", "--client-auth-key", "short"),
            "16 to 500 printable characters",
        ),
    ],
)
def test_onboard_app_with_invalid_arguments(db, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence):
        run("onboard_app", *arguments)


def test_watch_repository_prints_the_rest_response(world: World) -> None:
    repo = world.git.repo("acme/next.js", {"a.txt": b"a"})
    printed = json.loads(run("watch_repository", world.app.app_id, f"{repo.url}.git/", json=True))
    assert set(printed) == {"repository_id", "github_url", "owner", "name", "is_private", "created_at"}
    assert (printed["owner"], printed["name"], printed["is_private"]) == ("acme", "next.js", False)
    assert AppRepository.objects.get().repository.repository_id == printed["repository_id"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("{git}/acme/none", "If the repository is private, add a token"),
        ("https://elsewhere.example/a/b", "Repositories on elsewhere.example can't be watched"),
        ("http://127.0.0.1:1/a/b", "reach 127.0.0.1:1: connection refused"),
        ("{git}/acme", "must name an owner and a repository"),
        ("{git}/acme/private", "If the repository is private, add a token"),
        ("https://user:secret@127.0.0.1/a/b", "must not contain credentials"),
        ("file:///etc/passwd", "must look like"),
    ],
)
def test_watch_repository_that_cannot_be_watched(world: World, url: str, sentence: str) -> None:
    world.git.repo("acme/private", {"a": b"a"}, token="sesame")
    with pytest.raises(CommandError, match=sentence):
        run("watch_repository", world.app.app_id, url.format(git=world.git.url))
    assert not AppRepository.objects.exists()


def test_watch_repository_reads_the_token_from_stdin(world: World, monkeypatch) -> None:
    repo = world.git.repo("acme/private", {"a": b"a"}, token="sesame")
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    with pytest.raises(CommandError, match="The git host rejected the token"):
        run("watch_repository", world.app.app_id, repo.url, github_token_stdin=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("sesame\n"))
    printed = json.loads(run("watch_repository", world.app.app_id, repo.url, github_token_stdin=True, json=True))
    assert printed["is_private"] is True
    assert world.sync(AppRepository.objects.get()).status == "synced"


def test_watching_again_asks_before_it_sends_everything(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"a"})
    world.sync(watch)
    with pytest.raises(
        CommandError, match=r"already watches acme/\S+\. This will send ALL 1 file \(1 byte\) again\. .*--yes"
    ) as caught:
        run("watch_repository", world.app.app_id, repo.url + ".git", "--json")
    assert caught.value.returncode == 2
    watch.refresh_from_db()
    assert watch.status == "synced"
    assert AppRepository.objects.get(pk=watch.pk).github_url == watch.github_url


def test_watching_again_names_the_token_that_it_replaces(world: World, monkeypatch) -> None:
    repo, watch = world.watch({"a.txt": b"a"})
    AppRepository.objects.filter(pk=watch.pk).update(github_token="sesame")
    with pytest.raises(CommandError, match="This will remove its token and send ALL"):
        run("watch_repository", world.app.app_id, repo.url)
    monkeypatch.setattr("sys.stdin", io.StringIO("another\n"))
    with pytest.raises(CommandError, match="This will replace its token and send ALL"):
        run("watch_repository", world.app.app_id, repo.url, "--github-token-stdin")
    watch.refresh_from_db()
    assert watch.github_token == "sesame"


def test_watching_again_names_the_branch_that_it_switches_to(world: World) -> None:
    repo = world.git.repo("acme/widgets", {"a.txt": b"a"})
    watch = world.watch_url(repo, ref="main")
    for ref, change in (("main", ""), ("next", "switch it to next and ")):
        with pytest.raises(CommandError, match=f"This will {change}send ALL"):
            run("watch_repository", world.app.app_id, repo.url, "--ref", ref)
    watch.refresh_from_db()
    assert watch.ref == "main"


def test_watching_again_with_yes_resyncs_the_same_row(world: World) -> None:
    repo, watch = world.watch({"a.txt": b"a"})
    world.sync(watch)
    printed = json.loads(run("watch_repository", world.app.app_id, repo.url + ".git", "--yes", "--json"))
    assert printed["repository_id"] == watch.repository.repository_id
    world.sync(watch)
    assert AppRepository.objects.count() == 1
    assert [record.path for record in world.requests("create")] == ["a.txt", "a.txt"]


def test_resync_of_an_app_without_watches(world: World) -> None:
    with pytest.raises(CommandError, match="The app watches no repository"):
        run("resync", world.app.app_id, yes=True)


@pytest.mark.parametrize("is_one", [False, True])
def test_resync_of_a_watch_that_is_removed_meanwhile(world: World, monkeypatch, is_one: bool) -> None:
    _, watch = world.watch()
    read_sample = impact._sample

    def remove_and_read(watches: AppRepositoryQuerySet) -> list[AppRepository]:
        unwatch_repository(Actor.command(), watch)
        return read_sample(watches)

    monkeypatch.setattr(impact, "_sample", remove_and_read)
    said = f"no longer watches {watch.repository}" if is_one else "The app watches no repository"
    with pytest.raises(CommandError, match=said):
        run("resync", world.app.app_id, *([watch.repository.repository_id] if is_one else []), "--yes")


def test_sweep_once_enqueues_what_is_due(world: World, redis_client) -> None:
    world.watch()
    redis_client.flushall()
    assert "1 enqueued" in run("sweep", once=True)
    assert redis_client.llen("rq:queue:default") == 1


def test_sweep_once_fails_if_a_part_fails(world: World, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(head_checks, "check_due", fail)
    with pytest.raises(CommandError, match="A part of the sweep failed"):
        run("sweep", once=True)
