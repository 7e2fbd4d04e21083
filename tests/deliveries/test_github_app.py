"""Repositories read through a GitHub App, against a GitHub on loopback: its API, and a git server that accepts its tokens only."""

import io
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, PrivateFormat
from django.db import connection
from django.db.models.functions import Now

from deliveries_app.actors import Actor
from deliveries_app.models import App, AppRepository, Status
from deliveries_app.models.root_causes import RootCause
from deliveries_app.services import change_app, host_checks, watch_settings
from deliveries_app.services.github_apps import save_github_app
from deliveries_app.sweep import head_checks
from deliveries_app.sweep.head_checks import check_due
from docora.conf.logs import configure
from docora.db.clock import from_now
from docora.redis.connection import connection as redis
from repositories_app import github
from repositories_app.git import remote
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.git.process import Remote
from repositories_app.models import GitHubApp, HostOutage
from tests.api.caller import Caller, error_of
from tests.support.git import Repo
from tests.support.github_api import GitHub, GitHubFixture, Installation, Reply, pem
from tests.support.staff import fail
from tests.support.world import World

pytestmark = pytest.mark.django_db(transaction=True)
FILES = {"readme.md": b"# Hello\n"}


def nothing() -> None:
    """Do nothing while waiting."""


@pytest.fixture
def world(transactional_db: None, tmp_path: Path, settings) -> Iterator[World]:
    """A world whose git host is GitHub."""
    settings.REPOS_DIR = tmp_path / "repos"
    world = World(tmp_path)
    world.git.server.stop()
    world.git = GitHubFixture(tmp_path / "github")
    yield world
    world.close()


@pytest.fixture
def git(world: World) -> GitHubFixture:
    assert isinstance(world.git, GitHubFixture)
    return world.git


@pytest.fixture
def api(git: GitHubFixture) -> GitHub:
    return git.github


@pytest.fixture
def installation(api: GitHub) -> Installation:
    return api.install("acme", "acme/private", "acme/other")


@pytest.fixture
def repo(git: GitHubFixture, installation: Installation) -> Repo:
    """A private repository that the GitHub App is installed on."""
    return git.private("acme/private", FILES)


@pytest.fixture
def github_app(world: World, git: GitHubFixture) -> GitHubApp:
    """The GitHub App, assigned to Portal."""
    github_app = git.app()
    world.app.github_app = github_app
    world.app.save()
    return github_app


@pytest.fixture
def watch(world: World, github_app: GitHubApp, repo: Repo) -> AppRepository:
    return world.watch_url(repo)


def access(github_app: GitHubApp, url: str, *, fresh: bool = False) -> github.Access:
    return github.access_to([(github_app, url)], nothing, fresh=fresh)[github_app.pk, url]


def problem(github_app: GitHubApp, url: str) -> GitError:
    found = access(github_app, url)
    assert found.token == ""
    assert found.problem is not None
    return found.problem


# --- Registration, syncs and checks --------------------------------------------------------------------------------------


def test_private_repository_is_watched_and_synced_without_a_token(world: World, api: GitHub, watch, repo: Repo) -> None:
    assert watch.repository.is_private
    assert watch.github_token == ""
    world.settle()
    assert set(world.copy(watch)) == {"readme.md"}
    repo.commit({"new.txt": b"new"})
    world.settle()
    assert set(world.copy(watch)) == {"readme.md", "new.txt"}
    assert len(api.minted) == 1, "one token serves the registration, the checks and the syncs"
    with_token = [request for request in world.git.server.requests if request.status == 200]
    assert {(request.user, request.token) for request in with_token} == {("x-access-token", api.minted[0])}


def test_branch_is_read_with_the_same_token(world: World, api: GitHub, watch, repo: Repo) -> None:
    """A missing branch is not a refused token, so no other token is requested."""
    repo.commit({"dev.txt": b"dev"}, branch="dev")
    world.settle()
    assert watch_settings.change_watch(Actor.command(), watch, ref="dev")
    world.settle()
    assert set(world.copy(watch)) == {"dev.txt"}
    minted = len(api.minted)
    repo.delete_ref("refs/heads/dev")
    assert world.sync(watch).last_error.startswith('The repository has no branch or tag named "dev".')
    assert len(api.minted) == minted


def test_token_is_restricted_to_the_repository(api: GitHub, watch) -> None:
    assert api.bodies == [{"repositories": ["private"], "permissions": {"contents": "read"}}]


def test_api_registers_through_the_github_app(world: World, github_app, repo: Repo) -> None:
    answer = Caller(world.app).post(body={"github_url": repo.url})
    assert (answer.status_code, answer.json()["is_private"]) == (201, True)


def test_tenant_without_the_assignment_gets_404(world: World, api: GitHub, github_app, repo: Repo) -> None:
    world.watch_url(repo)  # Portal's token is kept, and must not be used for others
    other = world.add_app("Other")
    asked = len(api.requests)
    error_of(Caller(other).post(body={"github_url": repo.url}), 404)
    assert len(api.requests) == asked
    assert not AppRepository.objects.filter(app=other).exists()


def test_withdrawn_assignment_ends_the_access(world: World, watch, repo: Repo) -> None:
    world.settle()
    App.objects.update(github_app=None)
    repo.commit({"new.txt": b"new"})
    world.check()
    watch = world.sync(AppRepository.objects.get())
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "not_found")
    assert set(world.copy(watch)) == {"readme.md"}


def test_token_of_the_watch_comes_first(world: World, api: GitHub, git: GitHubFixture, github_app, repo: Repo) -> None:
    git.tokens[repo.name] = {"ghp_personal"}
    watch = world.watch_url(repo, token="ghp_personal")
    world.settle()
    assert watch.repository.is_private
    assert api.requests == []


def test_removing_the_token_of_a_watch_leaves_it_to_the_github_app(world: World, git, github_app, repo: Repo) -> None:
    git.tokens[repo.name] = {"ghp_personal"}
    watch = world.watch_url(repo, token="ghp_personal")
    watch_settings.change_watch(Actor.command(), watch, github_token="")
    world.settle()
    assert set(world.copy(watch)) == {"readme.md"}


def test_public_repository_needs_no_installation(world: World, api: GitHub, github_app, git: GitHubFixture) -> None:
    repo = git.repo("else/public", FILES)
    watch = world.watch_url(repo)
    world.settle()
    assert not watch.repository.is_private
    assert set(world.copy(watch)) == {"readme.md"}
    assert api.requests == ["GET /repos/else/public/installation"], "Docora remembers that there is none"


def test_public_repository_is_synced_while_the_api_is_down(world: World, api: GitHub, github_app, git) -> None:
    api.replies = [(502, {}, {})] * 3
    watch = world.watch_url(git.repo("else/public", FILES))
    world.settle()
    assert set(world.copy(watch)) == {"readme.md"}


def test_other_hosts_are_read_without_it(world: World, api: GitHub, git: GitHubFixture) -> None:
    world.app.github_app = git.app(host="https://github.com")
    world.app.save()
    world.watch_url(git.repo("else/public", FILES))
    assert api.requests == []


def test_revoked_token_is_replaced_before_the_sync(world: World, api: GitHub, watch, repo: Repo) -> None:
    world.settle()
    api.revoke_all()
    repo.commit({"new.txt": b"new"})
    world.settle()
    assert set(world.copy(watch)) == {"readme.md", "new.txt"}
    assert len(api.minted) == 2


def test_token_that_expires_during_a_run_is_replaced(world: World, api: GitHub, watch, repo: Repo) -> None:
    world.settle()
    repo.commit({"new.txt": b"new"})
    asked = 0

    def expire(method: str, target: str) -> None:
        nonlocal asked
        asked += target.endswith("/git-upload-pack")
        if asked == 2:  # the run has asked for HEAD, and now fetches
            api.revoke_all()

    world.git.server.on_request = expire
    watch = world.sync(watch)
    assert (watch.status, watch.last_commit) == (Status.SYNCED, repo.head)
    assert len(api.minted) == 2
    assert set(world.copy(watch)) == {"readme.md", "new.txt"}


def test_new_token_is_requested_before_the_old_one_expires(api: GitHub, github_app, repo: Repo) -> None:
    api.lifetime = 310
    first = access(github_app, repo.url)
    assert access(github_app, repo.url).token == first.token
    api.lifetime = 290
    assert access(github_app, repo.url, fresh=True).token == api.minted[-1]
    assert access(github_app, repo.url).token == api.minted[-1]
    methods = [request.partition(" ")[0] for request in api.requests]
    assert methods == ["GET", "POST"] * 2 + ["POST"], "only a fresh token asks for the installation again"


def test_github_that_keeps_refusing_is_asked_twice(world: World, api: GitHub, watch, repo: Repo) -> None:
    world.settle()
    world.git.server.on_request = lambda method, target: 401
    watch = world.sync(watch)
    assert watch.last_error_cause == "auth"
    assert len(api.minted) == 2


@pytest.mark.parametrize("failure", ["no commit", "moved", "unavailable"])
def test_token_is_kept_after_failures_of_another_kind(
    world: World, api: GitHub, watch, repo: Repo, failure: str
) -> None:
    """An empty repository would otherwise cost two requests at each check."""
    world.settle()
    if failure == "no commit":
        repo.delete_ref("refs/heads/main")
    else:
        world.git.server.on_request = lambda method, target: 301 if failure == "moved" else 503
    assert world.sync(watch).last_error
    assert len(api.minted) == 1


def test_sweep_asks_for_many_tokens_at_once(world: World, api: GitHub, git: GitHubFixture, github_app) -> None:
    names = [f"acme/r{number}" for number in range(8)]
    api.install("acme", *names)
    for name in names:
        world.watch_url(git.private(name, FILES))
    AppRepository.objects.update(next_sync_at=None, status=Status.SYNCED)  # nothing is due
    redis().flushdb()
    api.requests.clear()
    assert world.check() == 8
    assert [request.partition(" ")[0] for request in api.requests].count("POST") == 8
    assert len(api.requests) == 16
    assert not any(request.status == 401 for request in world.git.server.requests[-8:])
    AppRepository.objects.update(next_sync_at=None)
    assert world.check() == 8
    assert len(api.requests) == 16


def test_without_redis_each_read_asks_for_a_token(world: World, api: GitHub, watch, valkey_server) -> None:
    valkey_server.stop()
    minted = len(api.minted)
    world.sync(watch)
    assert set(world.copy(watch)) == {"readme.md"}
    assert len(api.minted) == minted + 2


# --- What GitHub may answer ----------------------------------------------------------------------------------------------


def test_app_that_is_not_installed(world: World, github_app, git: GitHubFixture) -> None:
    repo = git.private("umbrella/private", FILES)
    message = error_of(Caller(world.app).post(body={"github_url": repo.url}), 404)
    assert "The GitHub App Docora Reader can't read umbrella/private: it isn't installed there" in message


def test_installation_is_found_at_once_when_registering(world: World, api: GitHub, github_app, git) -> None:
    repo = git.private("umbrella/private", FILES)
    with pytest.raises(GitError):
        world.watch_url(repo)
    api.install("umbrella", "umbrella/private")
    world.settle()
    watch = world.watch_url(repo)
    world.settle()
    assert set(world.copy(watch)) == {"readme.md"}


def test_reinstalled_app_is_found_again(api: GitHub, github_app, installation: Installation, repo: Repo) -> None:
    access(github_app, repo.url)
    installation.number += 1
    api.lifetime = 0
    api.revoke_all()
    redis().flushdb()
    access(github_app, repo.url)
    installation.number += 1
    assert access(github_app, repo.url).token == api.minted[-1]
    assert [request.partition(" ")[0] for request in api.requests[-3:]] == ["POST", "GET", "POST"]


def test_repository_that_another_installation_has_now(api: GitHub, github_app, installation, repo: Repo) -> None:
    api.lifetime = 0
    access(github_app, repo.url)
    installation.repositories.clear()
    api.install("acme", "acme/private")
    assert access(github_app, repo.url).token == api.minted[-1]
    assert [request.partition(" ")[0] for request in api.requests[-3:]] == ["POST", "GET", "POST"]


def test_installation_that_is_gone_is_looked_for_once(api: GitHub, github_app, installation, repo: Repo) -> None:
    api.lifetime = 0
    access(github_app, repo.url)
    api.installations.clear()
    assert "it isn't installed there" in str(problem(github_app, repo.url))
    assert [request.partition(" ")[0] for request in api.requests[-2:]] == ["POST", "GET"]


def test_removed_installation(world: World, api: GitHub, watch, installation: Installation) -> None:
    world.settle()
    installation.repositories.clear()
    api.revoke_all()
    watch = world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.FAILED, "not_found")
    assert "it isn't installed there" in watch.last_error
    assert watch.repository.consecutive_failures == 0, "it concerns this app only"
    installation.repositories.add("acme/private")
    assert world.sync(watch).status == Status.SYNCED, (
        "that it was removed is cached, and asked again before the sync fails"
    )


def test_wrong_key(api: GitHub, git: GitHubFixture, repo: Repo) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    error = problem(git.app(private_key=pem(other)), repo.url)
    assert (error.cause, error.permanent) == (Cause.AUTH, True)
    assert "GitHub refused the key of the GitHub App Docora Reader. An administrator should check its app ID" in str(
        error
    )


def test_new_key_reaches_all_that_were_refused(world: World, git: GitHubFixture, installation: Installation) -> None:
    github_app = git.app()
    key = github_app.private_key
    world.app.github_app = github_app
    world.app.save()
    watches = [world.watch_url(git.private(name, FILES)) for name in ("acme/private", "acme/other")]
    save_github_app(Actor.command(), github_app, pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    for watch in watches:
        assert world.sync(watch).root_cause == RootCause.GIT_AUTH
    other = world.watch(name="acme/public")[1]
    fail(other, RootCause.SERVER_ERROR)
    AppRepository.objects.filter(pk=other.pk).update(next_sync_at=from_now(600))  # its retry
    assert AppRepository.objects.due().count() == 0
    save_github_app(Actor.command(), github_app, key)
    assert set(AppRepository.objects.due()) == set(watches)
    world.settle()
    assert {watch.status for watch in AppRepository.objects.all()} == {Status.SYNCED}


def test_assignment_reaches_all_that_were_refused(world: World, github_app: GitHubApp, watch, repo: Repo) -> None:
    App.objects.update(github_app=None)
    assert world.sync(AppRepository.objects.get()).root_cause == RootCause.GIT_NOT_FOUND
    world.app.github_app = github_app
    change_app(Actor.command(), world.app, ["name"])
    assert not AppRepository.objects.due().exists()
    change_app(Actor.command(), world.app, ["github_app"])
    assert AppRepository.objects.due().exists()


@pytest.mark.parametrize(("ahead", "accepted"), [(-50, True), (0, True), (500, True), (-70, False), (600, False)])
def test_clocks_that_differ(api: GitHub, github_app, repo: Repo, ahead: int, accepted: bool) -> None:
    api.clock = ahead
    assert bool(access(github_app, repo.url).token) == accepted


REPLIES = [
    ((403, {"Retry-After": "30"}, {}), Cause.NETWORK, False, 30, "exceeded. GitHub asks for a pause of 30 s."),
    ((429, {"Retry-After": "5"}, {}), Cause.NETWORK, False, 5, "rate limit for the GitHub App Docora Reader"),
    ((429, {}, {}), Cause.NETWORK, False, 60, "pause of 1 min"),
    ((403, {"X-RateLimit-Remaining": "0"}, {}), Cause.NETWORK, False, 60, "pause of 1 min"),
    ((403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}, {}), Cause.NETWORK, False, 1, "pause of 1 s"),
    (
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"}, {}),
        Cause.NETWORK,
        False,
        60,
        "pause of 1 min",
    ),
    ((403, {}, {"message": "You have exceeded a secondary rate limit."}), Cause.NETWORK, False, 60, "pause of 1 min"),
    ((429, {"X-RateLimit-Remaining": "9", "X-RateLimit-Reset": "9" * 20}, {}), Cause.NETWORK, False, 60, "1 min"),
    ((429, {"Retry-After": "99999"}, {}), Cause.NETWORK, False, 3600, "pause of 1 h"),
    ((403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 20}, {}), Cause.NETWORK, False, 3600, "1 h"),
    ((403, {}, {"message": "Suspended"}), Cause.AUTH, True, 0, "installation may be suspended"),
    ((401, {}, {}), Cause.AUTH, True, 0, "refused the key"),
    ((500, {}, {}), Cause.NETWORK, False, 0, "GitHub returned HTTP 500. Docora retries automatically."),
    ((503, {"Retry-After": "7"}, {}), Cause.NETWORK, False, 7, "GitHub returned HTTP 503"),
    ((503, {"Retry-After": "99999"}, {}), Cause.NETWORK, False, 3600, "GitHub returned HTTP 503"),
    ((301, {"Location": "/api/v3/repositories/1/installation"}, {}), Cause.NOT_FOUND, True, 0, "renamed or moved"),
    ((200, {}, b"<html>"), Cause.OTHER, False, 0, "GitHub's answer is malformed"),
    ((200, {}, []), Cause.OTHER, False, 0, "malformed"),
    ((200, {}, {"id": 0}), Cause.OTHER, False, 0, "malformed"),
    ((200, {}, b"[" * 100_000), Cause.OTHER, False, 0, "malformed"),
    ((200, {}, {"id": None}), Cause.OTHER, False, 0, "malformed"),
    ((200, {}, b"\xff"), Cause.OTHER, False, 0, "malformed"),
    ((200, {}, b'{"id": Infinity}'), Cause.OTHER, False, 0, "malformed"),
]


@pytest.mark.parametrize(("reply", "cause", "permanent", "cooldown", "text"), REPLIES)
def test_answers_map_to_causes(api: GitHub, github_app, repo: Repo, reply, cause, permanent, cooldown, text) -> None:
    api.replies = [reply]
    error = problem(github_app, repo.url)
    assert (error.cause, error.permanent, error.cooldown) == (cause, permanent, cooldown), str(error)
    assert not error.no_connection
    assert text in str(error)


def test_nothing_is_asked_while_the_rate_limit_is_exceeded(api: GitHub, git: GitHubFixture, github_app) -> None:
    urls = [f"{git.url}/acme/r{number}" for number in range(github.CONCURRENCY + 10)]
    api.replies = [(403, {"Retry-After": "60"}, {})] * len(urls)
    found = github.access_to([(github_app, url) for url in urls], nothing)
    assert {str(one.problem)[:40] for one in found.values()} == {"GitHub's rate limit for the GitHub App D"}
    assert len(api.requests) < len(urls), "those that wait for their turn are not asked for"
    api.replies, asked = [], len(api.requests)
    assert "GitHub asks for a pause of " in str(problem(github_app, urls[0]))
    assert len(api.requests) == asked
    redis().delete(f"docora:github_limit:{github_app.pk}")  # as its TTL does
    api.install("acme", "acme/r0", "acme/r1")
    assert access(github_app, urls[0]).token
    redis().set(f"docora:github_limit:{github_app.pk}", 1, ex=365 * 86400)  # the clock of Redis was ahead
    assert access(github_app, urls[1]).token


def test_hanging_api_gets_no_further_requests(api: GitHub, git: GitHubFixture, github_app, monkeypatch) -> None:
    """Otherwise the checks of all other repositories would wait for the API's timeout, again and again."""
    monkeypatch.setattr(github, "_TIMEOUT_SECONDS", 0.5)
    asked: list[str] = []
    is_over = threading.Event()

    def hang(method: str, path: str, *request) -> Reply:
        asked.append(path)
        is_over.wait(30)
        return 404, {}, {}

    monkeypatch.setattr(api, "handle", hang)
    urls = [f"{git.url}/acme/r{number}" for number in range(3 * github.CONCURRENCY)]
    try:
        found = github.access_to([(github_app, url) for url in urls], nothing)
    finally:
        is_over.set()
    assert {one.problem.cause for one in found.values() if one.problem} == {Cause.TIMEOUT}
    assert (len(found), len(asked)) == (len(urls), github.CONCURRENCY)


def test_host_is_not_down_if_only_watches_of_a_github_app_are_answered(
    world: World, api: GitHub, watch, monkeypatch
) -> None:
    """Those are checked last."""
    world.watch_url(world.git.repo("acme/public", FILES), app=world.add_app("Other"))
    AppRepository.objects.update(next_sync_at=None, status=Status.SYNCED)
    request = remote.upload_pack_request

    def unconnected(asked: Remote, *arguments, **options):
        if "public" in asked.url:
            asked = replace(asked, url=asked.url.replace(world.git.url, "http://127.0.0.1:9"))
        return request(asked, *arguments, **options)

    monkeypatch.setattr(remote, "upload_pack_request", unconnected)
    assert world.check() == 2
    assert not HostOutage.objects.exists()


def test_slow_api_does_not_delay_the_checks_of_other_repositories(
    world: World, api: GitHub, watch, monkeypatch
) -> None:
    public = world.watch_url(world.git.repo("acme/public", FILES), app=world.add_app("Other"))
    AppRepository.objects.update(next_sync_at=None, status=Status.SYNCED)
    redis().flushdb()
    is_due = threading.Event()
    found: list[bool] = []

    def think(*_request) -> Reply:
        found.append(is_due.wait(10))
        return 404, {}, {}

    def note_due() -> None:
        if AppRepository.objects.due().filter(pk=public.pk).exists():
            is_due.set()

    monkeypatch.setattr(api, "handle", think)
    AppRepository.objects.update(next_check_at=Now())
    with remote.new_client() as client:
        assert check_due(client, note_due) == 2
    assert found == [True]


def test_hanging_api_does_not_delay_the_checks_through_other_github_apps(
    world: World, api: GitHub, watch, tmp_path: Path, monkeypatch
) -> None:
    """The sync of its own watch waits longer, so a slow API's watches are still read."""
    monkeypatch.setattr(head_checks, "_TOKEN_SECONDS", 0.5)
    is_over = threading.Event()
    answered: list[str] = []

    def hang(method: str, *_request) -> Reply:
        is_over.wait(10)
        answered.append(method)
        return 404, {}, {}

    with GitHubFixture(tmp_path / "other") as elsewhere:
        elsewhere.github.install("acme", "acme/elsewhere")
        other = world.add_app("Other")
        other.github_app = elsewhere.app("Other Reader")
        other.save()
        world.watch_url(elsewhere.private("acme/elsewhere", FILES), app=other)
        redis().flushdb()
        monkeypatch.setattr(api, "handle", hang)
        AppRepository.objects.update(next_sync_at=None, status=Status.SYNCED, next_check_at=Now())
        assert world.check() == 2
        assert not answered
        is_over.set()
    assert AppRepository.objects.due().count() == 2


@pytest.mark.parametrize(
    "answer",
    [
        {}, [], {"token": "", "expires_at": "2099-01-01T00:00:00Z"}, {"token": "ghs_x", "expires_at": "soon"},
        {"token": "a b", "expires_at": "2099-01-01T00:00:00Z"}, {"token": "a\r\nX: y", "expires_at": "2099-01-01T00:00:00Z"},
        {"token": "user:x", "expires_at": "2099-01-01T00:00:00Z"}, {"token": "é", "expires_at": "2099-01-01T00:00:00Z"}, {"token": "x" * 5000, "expires_at": "2099-01-01T00:00:00Z"},
    ],
)  # fmt: skip
def test_malformed_token(api: GitHub, github_app, repo: Repo, answer) -> None:
    api.replies = [(200, {}, {"id": 7}), (201, {}, answer)]
    assert "malformed" in str(problem(github_app, repo.url))


def test_missing_permission(github_app, installation: Installation, repo: Repo) -> None:
    installation.may_read = False
    error = problem(github_app, repo.url)
    assert (error.cause, error.permanent) == (Cause.AUTH, True)
    assert "grant it the repository and the permission to read contents" in str(error)


def test_suspended_installation(github_app, installation: Installation, repo: Repo) -> None:
    installation.suspended = True
    assert "may be suspended" in str(problem(github_app, repo.url))


def test_api_that_cannot_be_reached(github_app, repo: Repo, world: World) -> None:
    world.git.server.stop()
    error = problem(github_app, repo.url)
    assert (error.cause, error.permanent, error.for_every_watcher, error.no_connection) == (
        Cause.NETWORK,
        False,
        False,
        False,
    )


def test_outage_of_the_api_is_retried(world: World, api: GitHub, watch) -> None:
    redis().flushdb()
    api.replies = [(502, {}, {})] * 2
    watch = world.sync(watch)
    assert (watch.status, watch.last_error_cause) == (Status.PENDING, "network")
    world.settle()
    assert set(world.copy(watch)) == {"readme.md"}


def test_slow_api_is_given_up_in_time(world: World, github_app, repo: Repo, monkeypatch) -> None:
    monkeypatch.setattr(host_checks, "GIT_CHECK_SECONDS", 0.2)
    handle = world.git.github.handle  # type: ignore[attr-defined]

    def slowly(*request):
        time.sleep(2)
        return handle(*request)

    world.git.github.handle = slowly  # type: ignore[attr-defined]
    with pytest.raises(GitError, match="didn't respond within 0 seconds"):
        world.watch_url(repo)


# --- Secrets -------------------------------------------------------------------------------------------------------------


def test_secrets_are_stored_encrypted_and_never_logged(world: World, api: GitHub, watch) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configure({"format": "json", "level": "DEBUG"})
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    world.settle()
    access(watch.app.github_app, watch.github_url, fresh=True)
    root.handlers[:] = handlers
    root.setLevel(level)
    with connection.cursor() as cursor:
        cursor.execute("SELECT private_key FROM repositories_app_githubapp")
        stored = cursor.fetchone()[0]
    kept = b" ".join(redis().get(name) for name in redis().keys("docora:github_token:*"))
    assert kept
    for token in api.minted:
        assert token not in stream.getvalue()
        assert token.encode() not in kept
    assert "github_token_minted" in stream.getvalue()
    assert "eyJ" not in stream.getvalue()
    assert "PRIVATE KEY" not in stored
    assert "ghs_" not in repr(github.Access("ghs_secret"))


def test_new_key_does_not_use_tokens_of_the_old_one(api: GitHub, github_app, repo: Repo) -> None:
    first = access(github_app, repo.url).token
    github_app.private_key = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    assert access(github_app, repo.url).token == ""
    assert first in api.minted


def test_lost_encryption_key_fails_the_sync_with_a_sentence(world: World, watch, settings) -> None:
    settings.ENCRYPTION_KEYS = ["another-key-that-decrypts-nothing"]
    app = App.objects.get(pk=watch.app_id)
    app.client_auth_key = "a-key-that-only-tests-use"
    app.save(update_fields=["client_auth_key"])
    world.check()
    watch = world.sync(AppRepository.objects.get())
    assert "can't be decrypted" in watch.last_error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a private key in PEM format"),
        ("nonsense", "not a private key in PEM format"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "not a private key in PEM format"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "RSA key of at least 2,048 bits"),
        (pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "RSA key of at least 2,048 bits"),
        (pem(encryption=BestAvailableEncryption(b"x")), "must not have a passphrase"),
    ],
    ids=["empty", "text", "cut", "EC", "short", "passphrase"],
)
def test_other_keys_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        github.load_key(text)


def test_both_pem_formats_are_accepted() -> None:
    assert github.load_key(pem()).key_size == github.load_key(pem(form=PrivateFormat.PKCS8)).key_size == 2048


@pytest.mark.parametrize(
    ("host", "api"),
    [
        ("https://github.com", "https://api.github.com"),
        ("https://acme.ghe.com", "https://api.acme.ghe.com"),
        ("https://github.acme.example", "https://github.acme.example/api/v3"),
        ("https://acmeghe.com", "https://acmeghe.com/api/v3"),
        ("https://github.acme.example:8443", "https://github.acme.example:8443/api/v3"),
    ],
)
def test_api_of_each_kind_of_github(host: str, api: str) -> None:
    assert github.api_url(host) == api


def test_installations_are_listed(api: GitHub, github_app, installation: Installation) -> None:
    api.install("Umbrella", "Umbrella/x")
    assert github.installations(github_app) == ["Umbrella", "acme"]
    for reply, message in {
        (401, b"{}"): "refused the key",
        (200, b"<html>"): "malformed",
        (200, b'{"id": 1}'): "malformed",
        (200, b'[{"account": null}]'): "malformed",
    }.items():
        api.replies = [(reply[0], {}, reply[1])]
        with pytest.raises(GitError, match=message):
            github.installations(github_app)


def test_redirect_of_another_call_does_not_mean_that_the_repository_moved(api: GitHub, github_app, repo: Repo) -> None:
    """Only the first call names the repository. A wrong address of the API must not fail it for other apps."""
    elsewhere = 301, {"Location": "/elsewhere"}, {}
    api.replies = [(200, {}, {"id": 7}), elsewhere]
    errors = [problem(github_app, repo.url)]
    api.replies = [elsewhere]
    with pytest.raises(GitError) as raised:
        github.installations(github_app)
    for error in [*errors, raised.value]:
        assert "GitHub App Docora Reader: GitHub returned HTTP 301" in str(error)
        assert (error.cause, error.permanent, error.for_every_watcher) == (Cause.NETWORK, False, False)
