"""Each kind of error has its own code, and says whether trying again can help."""

import socket
from collections.abc import Iterator

import pytest

from docora.web.error_codes import BY_STATUS, ErrorCode
from repositories_app.git import errors
from tests.api.caller import Caller, code_of
from tests.support.world import World


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine at which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


def watch(caller: Caller, url: str, **fields: str):
    return caller.post("", {"github_url": url, **fields})


def test_missing_repository(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    missing = repo.url.replace("acme/docs", "acme/gone")
    assert code_of(watch(caller, missing), 404) == ErrorCode.REPOSITORY_NOT_FOUND
    assert code_of(watch(caller, missing, github_token="any"), 404) == ErrorCode.REPOSITORY_NOT_FOUND


def test_private_repository(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="right")
    assert code_of(watch(caller, repo.url), 404) == ErrorCode.TOKEN_REQUIRED
    assert code_of(watch(caller, repo.url, github_token="wrong"), 404) == ErrorCode.TOKEN_REJECTED
    assert code_of(watch(caller, repo.url, github_token="two words"), 422) == ErrorCode.INVALID_REQUEST
    watched = watch(caller, repo.url, github_token="right").json()
    path = f"/{watched['repository_id']}/token"
    assert code_of(caller.patch(path, {"github_token": "wrong"}), 422) == ErrorCode.TOKEN_REJECTED
    world.git.server.on_request = lambda method, target: 404
    assert code_of(caller.patch(path, {"github_token": "right"}), 422) == ErrorCode.REPOSITORY_NOT_FOUND


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(503, ErrorCode.HOST_UNREACHABLE, True), (429, ErrorCode.HOST_RATE_LIMITED, True), (301, ErrorCode.REPOSITORY_MOVED, False)],
)  # fmt: skip
def test_host_that_does_not_serve(world: World, caller: Caller, status: int, code: ErrorCode, retryable: bool) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    world.git.server.on_request = lambda method, target: status
    answer = watch(caller, repo.url)
    assert code_of(answer, 404) == code
    assert answer.json()["retryable"] is retryable


def test_unreachable_host(world: World, caller: Caller, closed_port: int, settings) -> None:
    settings.ALLOWED_GIT_HOSTS = [f"127.0.0.1:{closed_port}"]
    answer = watch(caller, f"http://127.0.0.1:{closed_port}/acme/docs")
    assert code_of(answer, 404) == ErrorCode.HOST_UNREACHABLE
    assert answer.json()["retryable"] is True


def test_host_in_a_network_that_is_not_allowed(world: World, caller: Caller, settings) -> None:
    repo = world.git.repo("acme/docs", {"a": b"1"})
    settings.ALLOWED_PRIVATE_NETWORKS = []
    assert code_of(watch(caller, repo.url), 404) == ErrorCode.ADDRESS_NOT_ALLOWED


def test_url_that_cannot_be_watched(portal: Caller) -> None:
    assert code_of(watch(portal, "https://elsewhere.example/acme/docs"), 422) == ErrorCode.HOST_NOT_ALLOWED
    assert code_of(watch(portal, "git@github.com:acme/docs"), 422) == ErrorCode.INVALID_URL


def test_unknown_ids(portal: Caller, watches) -> None:
    unknown = "repo_" + "0" * 24
    assert code_of(portal.get(f"/{unknown}"), 404) == ErrorCode.NOT_WATCHED
    run = f"/{watches[0].repository.repository_id}/runs/run_{'0' * 24}"
    assert code_of(portal.get(run), 404) == ErrorCode.RUN_NOT_FOUND
    assert code_of(portal.client.get("/api/nothing"), 404) == ErrorCode.NOT_FOUND


def test_wrong_token_and_method(portal: Caller) -> None:
    assert code_of(Caller(portal.app, "docora_" + "0" * 64).get(), 401) == ErrorCode.UNAUTHORIZED
    assert code_of(portal.client.delete("/api/app"), 405) == ErrorCode.METHOD_NOT_ALLOWED


def test_every_code_is_documented(portal: Caller) -> None:
    page = portal.client.get("/docs/api/").text
    for code in ErrorCode:
        assert f"<code>{code}</code>" in page


def test_message_of_one_line_has_no_full_stop(world: World, caller: Caller) -> None:
    repo = world.git.repo("acme/private", {"a": b"1"}, token="right")
    assert watch(caller, repo.url).json()["error"] == str(errors.explain(errors.Cause.AUTH)).removesuffix(".")


def test_every_status_has_a_code() -> None:
    assert set(BY_STATUS.values()) < set(ErrorCode)
