"""Register, list, get and unwatch repositories, with real git."""

import re
import time

import pytest
from django.utils import timezone

from deliveries_app.models import AppRepository, Reason, Status, SyncRun
from deliveries_app.services import host_checks
from repositories_app.git import url
from tests.api.caller import Caller, error_of
from tests.support.staff import make_watch
from tests.support.world import World

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_registration_follows_the_contract(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/next.js", {"readme.md": b"hello"})
    answer = caller.post("", {"github_url": f"{repo.url}.git"})
    assert answer.status_code == 201
    body = answer.json()
    assert list(body) == ["repository_id", "github_url", "owner", "name", "is_private", "created_at"]
    assert re.fullmatch("repo_[0-9a-f]{24}", body["repository_id"])
    assert STAMP.fullmatch(body["created_at"])
    assert (body["github_url"], body["owner"], body["name"]) == (f"{repo.url}.git", "acme", "next.js")
    assert body["is_private"] is False
    watch = AppRepository.objects.get()
    assert (watch.app, watch.status) == (world.app, Status.PENDING)
    assert world.sync(watch).status == Status.SYNCED


def test_each_app_sees_its_own_spelling_of_the_url(world: World, caller: Caller, monkeypatch) -> None:
    """As on github.com, where `Acme/Widgets` and `acme/widgets` are the same repository."""
    monkeypatch.setattr(url, "CASE_INSENSITIVE_HOSTS", {"127.0.0.1"})
    callers = {"Acme/Widgets": caller, "acme/widgets": Caller(world.add_app("Search"))}
    ids = set()
    for spelled, each in callers.items():
        repo = world.git.repo(spelled, {"readme.md": b"hello"})
        answer = each.post("", {"github_url": repo.url}).json()
        ids.add(answer["repository_id"])
        seen = each.get(f"/{answer['repository_id']}").json()
        assert f"{answer['owner']}/{answer['name']}" == f"{seen['owner']}/{seen['name']}" == spelled
    assert len(ids) == 1
    world.settle()
    assert {record.repository for record in world.requests("create")} == set(callers)


def test_trailing_slash_belongs_to_the_spelling(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/widgets", {"readme.md": b"hello"})
    sent: list[str] = []
    world.answer(lambda note: sent.append(note.payload["repository"]["github_url"]))  # type: ignore[func-returns-value]
    for spelled in (f"{repo.url}/", repo.url, f"{repo.url}.git/"):
        assert caller.put({"github_url": spelled}).json()["github_url"] == spelled
        repo.commit({"readme.md": spelled.encode()})
        world.settle()
        assert sent[-1] == spelled
    assert AppRepository.objects.count() == 1


def test_registering_again_replaces_the_token(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="first")
    first = caller.post("", {"github_url": repo.url, "github_token": "first"}).json()
    assert first["is_private"] is True
    world.settle()
    world.git.tokens["acme/private"] = {"second"}
    again = caller.post("", {"github_url": f"{repo.url}/", "github_token": "second"})
    assert (again.status_code, again.json()["repository_id"]) == (201, first["repository_id"])
    watch = AppRepository.objects.get()
    assert watch.github_token == "second"
    assert SyncRun.objects.filter(watch=watch, outcome="", reason=Reason.RESYNC).count() == 1
    world.settle()
    assert len(world.requests("create")) == 2


def test_registering_again_shows_whether_the_repository_is_private_now(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    body = {"github_url": repo.url, "github_token": "valid"}
    assert caller.post("", body).json()["is_private"] is False
    world.git.tokens["acme/docs"] = {"valid"}
    assert caller.post("", body).json()["is_private"] is True
    world.git.tokens.clear()
    assert caller.post("", body).json()["is_private"] is False


@pytest.mark.parametrize("given", [None, "wrong"])
def test_unreadable_repository_is_404(world: World, caller: Caller, given: str | None) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="right")
    message = error_of(caller.post("", {"github_url": repo.url} | ({"github_token": given} if given else {})), 404)
    assert "token" in message
    assert "right" not in message
    assert not AppRepository.objects.exists()


def test_slow_host_does_not_delay_the_response(world: World, caller: Caller, monkeypatch) -> None:
    monkeypatch.setattr(host_checks, "GIT_CHECK_SECONDS", 0.5)
    repo = world.git.repo(files={"a": b"1"})

    def wait(method: str, target: str) -> int:
        time.sleep(4)
        return 500

    world.git.server.on_request = wait
    before = timezone.now()
    assert "didn't respond within" in error_of(caller.post("", {"github_url": repo.url}), 404)
    assert (timezone.now() - before).total_seconds() < 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"github_url": "https://evil.example/a/b"}, "ALLOWED_GIT_HOSTS"),
        ({"github_url": "ext::sh -c touch% /tmp/x"}, "must look like"),
        ({"github_url": "http://127.0.0.1/a/b\u0000"}, "must look like"),
        ({"github_url": "http://127.0.0.1/a/\ud800"}, "lone surrogates"),
        ({"github_url": "http://127.0.0.1/--upload-pack=x/b"}, "Owner and name"),
        ({"github_url": "http://u:p@127.0.0.1/a/b"}, "credentials"),
        ({"github_url": "http://127.0.0.1/a/" + "b" * 3000}, "at most 2048 characters"),
        ({"github_url": ""}, "must not be empty"),
        ({"github_url": 5}, "github_url must be a string"),
        ({"github_url": None}, "github_url must be a string"),
        ({}, "github_url is required"),
        ([], "must be a JSON object"),
        ("text", "must be a JSON object"),
        ({"github_url": "http://127.0.0.1/a/b", "github_token": ""}, "github_token must not be empty"),
        ({"github_url": "http://127.0.0.1/a/b", "github_token": "a b"}, "printable ASCII"),
        ({"github_url": "http://127.0.0.1/a/b", "github_token": "a\r\nX-Evil: 1"}, "printable ASCII"),
        ({"github_url": "http://127.0.0.1/a/b", "github_token": "a\n"}, "printable ASCII"),
        ({"github_url": "http://127.0.0.1/a/b", "github_token": "x" * 256}, "at most 255 characters"),
        ({"github_url": "http://127.0.0.1/a/b", "github_token": ["x"]}, "github_token must be a string"),
    ],
)
def test_invalid_registration_is_422_with_a_reason(portal: Caller, body, expected: str) -> None:
    assert expected in error_of(portal.post("", body), 422)


def test_list_shows_the_state_of_every_sync(portal: Caller) -> None:
    AppRepository.objects.filter(app=portal.app, repository__name="docs").update(
        status=Status.FAILED,
        last_error="The git host rejected the token.",
        last_error_cause="auth",
        last_synced_at=timezone.now(),
        last_commit="c" * 40,
        branch="main",
        files_failing=3,
        left_out={"symlink": 2},
    )
    body = portal.get().json()
    assert (body["page"], body["pages"], body["total"]) == (1, 1, 2)
    docs, site = body["repositories"]
    assert set(docs) == {
        *("repository_id", "github_url", "owner", "name", "is_private", "status", "created_at", "last_synced_at"),
        *("last_scanned_at", "last_commit", "branch", "files", "bytes", "files_failing", "left_out", "last_error"),
        *("last_error_cause", "next_sync_at", "ref", "include_patterns", "exclude_patterns", "paused"),
    }
    assert (docs["status"], docs["last_error_cause"], docs["left_out"]) == ("failed", "auth", {"symlink": 2})
    assert (docs["files"], docs["bytes"], docs["files_failing"]) == (100, 5000, 3)
    assert STAMP.fullmatch(docs["last_synced_at"])
    assert (site["name"], site["last_error"], site["last_synced_at"], site["last_commit"]) == ("site", None, None, None)
    assert portal.get(f"/{docs['repository_id']}").json() == docs
    AppRepository.objects.filter(app=portal.app, repository__name="docs").update(
        failing_since=timezone.now(), root_cause="git_auth"
    )
    for failing, name in (("true", "docs"), ("false", "site")):
        assert [row["name"] for row in portal.get(failing=failing).json()["repositories"]] == [name]
    assert "ghp_secret" not in str(body)


def test_list_is_paged(portal: Caller) -> None:
    first, second = (portal.get(page=page, per_page=1).json() for page in (1, 2))
    assert [page["repositories"][0]["name"] for page in (first, second)] == ["docs", "site"]
    assert first["pages"] == 2
    assert portal.get(page=1_000_000).json()["repositories"] == []


def test_next_continues_from_any_page(portal: Caller) -> None:
    make_watch(portal.app, "wiki")
    second = portal.get(page=2, per_page=1).json()
    last = portal.get(after=second["next"], per_page=1).json()
    assert ([row["name"] for row in last["repositories"]], last["next"]) == (["wiki"], None)
    assert portal.get(after=second["next"], per_page=1, page=2).json()["repositories"] == last["repositories"]
    assert portal.get(page=3, per_page=1).json()["next"] is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"page": "0"}, "page must be at least 1"),
        ({"page": "9" * 30}, "page must be at most 1000000"),
        ({"page": "x"}, "page must be a whole number"),
        ({"per_page": "101"}, "per_page must be at most 100"),
        ({"per_page": "1.5"}, "per_page must be a whole number"),
        ({"page": "\x00"}, "page must be a whole number"),
        ({"failing": "maybe"}, "failing must be true or false"),
    ],
)
def test_invalid_page_is_422(portal: Caller, query: dict[str, str], expected: str) -> None:
    assert expected in error_of(portal.get(**query), 422)


def test_unwatch(world: World, caller: Caller) -> None:
    _, watch = world.watch()
    path = f"/{watch.repository.repository_id}"
    answer = caller.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert error_of(caller.delete(path), 404).startswith("Repository not found")
    assert error_of(caller.get(path), 404).startswith("Repository not found")
    assert caller.get().json()["total"] == 0


def test_resync_returns_its_run_id(world: World, caller: Caller) -> None:
    _, watch = world.watch()
    world.settle()
    answer = caller.post(f"/{watch.repository.repository_id}/resync")
    assert answer.status_code == 202
    run = SyncRun.objects.get(run_id=answer.json()["run_id"])
    assert list(answer.json()) == ["run_id"]
    assert (run.watch, run.reason, run.requested_by, run.outcome) == (watch, Reason.RESYNC, "app Portal", "")
    world.settle()
    assert len(world.requests("create")) == 2
