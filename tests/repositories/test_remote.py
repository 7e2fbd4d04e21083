"""How a git host's responses are interpreted, for `ls-refs` and for git's own fetch. Real servers, real git."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from repositories_app.git import remote
from repositories_app.git.exceptions import Cause, GitError, Interrupted, NoCommit, RefNotFound
from repositories_app.git.protocol import Head
from repositories_app.git.remote import HeadQuery, HeadsByGit, ls_head, ls_heads, new_client
from repositories_app.git.url import parse_url
from repositories_app.mirror.mirror import Mirror
from tests.support.git import GitFixture, Repo, Takeover

TOKEN = "ghp_NeverSeen42"


@pytest.fixture
def repo(server: GitFixture) -> Repo:
    return server.repo("acme/widgets", {"a.txt": b"1"})


def answer(status: str, *headers: str, body: bytes = b"") -> Takeover:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]

    def take_over(connection: socket.socket) -> None:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return take_over


def ask(repo: Repo, token: str = "") -> GitError:
    with new_client(max_connections=1) as client, pytest.raises(GitError) as caught:
        ls_head(client, repo.url, token)
    return caught.value


def ask_by_git(*queries: HeadQuery[Any], tick: Callable[[], None] = lambda: None) -> list[tuple[Any, Head | GitError]]:
    with HeadsByGit[Any]() as by_git:
        by_git.ask(queries)
        while by_git.proceed(1.0):
            tick()
        return by_git.answers()


@pytest.mark.parametrize(
    ("status", "headers", "body", "with_token", "without"),
    [
        ("401 No", [], b"", ("auth", False, "it is invalid, expired or revoked"), ("not_found", False, "add a token")),
        ("403 No", [], b"", ("auth", False, "allowed to read"), ("not_found", False, "add a token")),
        ("403 No", [], b"SAML SSO", ("auth", False, "single sign-on"), ("not_found", False, "add a token")),
        ("404 No", [], b"", ("not_found", False, "that the token can read"), ("not_found", False, "add a token")),
        ("410 Gone", [], b"", ("not_found", False, "that the token can read"), ("not_found", False, "add a token")),
        ("429 Slow", [], b"", ("network", False, "asks for a pause of 1 min"), ("network", True, "asks for a pause of 1 min")),
        ("429 Slow", ["Retry-After: 30"], b"", ("network", False, "asks for a pause of 30 s"), ("network", True, "asks for a pause of 30 s")),
        ("403 No", ["Retry-After: 9"], b"", ("network", False, "asks for a pause of 9 s"), ("network", True, "asks for a pause of 9 s")),
        ("403 No", ["X-RateLimit-Remaining: 0"], b"", ("network", False, "rate limit"), ("network", True, "rate limit")),
        ("500 Oops", [], b"", ("network", True, "returned HTTP 500"), ("network", True, "returned HTTP 500")),
        ("503 Busy", ["Retry-After: 8"], b"", ("network", True, "returned HTTP 503"), ("network", True, "returned HTTP 503")),
    ],
)  # fmt: skip
def test_responses_map_to_causes(repo: Repo, status, headers, body, with_token, without) -> None:
    repo.server.on_request = lambda *_: answer(status, *headers, body=body)
    for token, (cause, for_every_watcher, text) in ((TOKEN, with_token), ("", without)):
        error = ask(repo, token)
        assert (error.cause, error.for_every_watcher) == (cause, for_every_watcher), str(error)
        assert text in str(error)


@pytest.mark.parametrize(
    ("status", "header", "cooldown"),
    [
        ("429 Slow", "X: y", 60.0),
        ("429 Slow", "Retry-After: 30", 30.0),
        ("403 No", "Retry-After: 9", 9.0),
        ("503 Busy", "Retry-After: 8", 8.0),
        ("503 Busy", "Retry-After: 999999", 3600.0),
        ("503 Busy", "X: y", 0.0),
        ("404 No", "Retry-After: 8", 0.0),
    ],
)
def test_retry_after_of_the_host_is_respected(repo: Repo, status: str, header: str, cooldown: float) -> None:
    repo.server.on_request = lambda *_: answer(status, header)
    assert ask(repo).cooldown == cooldown


def test_rate_limited_host_is_not_asked_by_git_too(repo: Repo) -> None:
    repo.server.on_request = lambda *_: answer("429 Too Many Requests")
    ask(repo, TOKEN)
    assert len(repo.server.requests) == 1


MOVED = [
    ("/acme/gadgets/git-upload-pack", "{url}/acme/gadgets"),
    ("/acme/gadgets.git/git-upload-pack", "{url}/acme/gadgets.git"),
    ("{url}/acme/gadgets/git-upload-pack", "{url}/acme/gadgets"),
    ("{url}/acme/gadgets/info/refs?service=git-upload-pack", "{url}/acme/gadgets"),
    ("{url}/acme/gadgets?token=secret", "{url}/acme/gadgets"),
    ("{url}/acme/gadgets#secret", "{url}/acme/gadgets"),
    ("//127.0.0.1:1/acme/gadgets", "http://127.0.0.1:1/acme/gadgets"),
    ("http://user:secret@127.0.0.1/acme/gadgets", None),
    ("https://elsewhere.example/acme/gadgets", None),
    ("http://169.254.169.254/latest/meta-data", None),
    ("{url}/group/sub/gadgets.git/git-upload-pack", "{url}/group/sub/gadgets.git"),
    ("{url}/users/sign_in/now", None),
    ("{url}/acme/widgets/git-upload-pack", None),  # the same address
    ("{url}/acme/" + TOKEN, None),
    ("file:///etc/passwd", None),
    ("ext::sh -c id", None),
    ("http://[::1", None),
    ("{url}/acme/" + "g" * 5000, None),
    ("", None),
]


STATUSES = ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]


@pytest.mark.parametrize("status", STATUSES)
def test_redirect_of_a_renamed_repository_is_not_followed(repo: Repo, subtests: pytest.Subtests, status: str) -> None:
    url = repo.server.url
    for location, address in MOVED:
        with subtests.test(location[:60]):
            before = len(repo.server.requests)
            repo.server.on_request = lambda *_, to=location: answer(status, "Location: " + to.replace("{url}", url))
            error = ask(repo, TOKEN)
            assert (error.cause, error.permanent, error.for_every_watcher) == (Cause.NOT_FOUND, True, True)
            if address:
                assert f"moved to {address.replace('{url}', url)}. Watch that URL instead." in str(error)
            else:
                assert "The git host redirects this URL" in str(error)
            assert "secret" not in str(error)
            assert TOKEN not in str(error)
            assert len(repo.server.requests) == before + 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_redirect_met_by_git_has_the_same_message(repo: Repo, fetched: Callable[..., str], status: str) -> None:
    def redirect(method: str, target: str) -> Takeover | None:
        new = target.replace("widgets", "gadgets")
        return answer(status, f"Location: {new}") if "widgets/info/refs" in target else None

    repo.server.on_request = redirect
    with pytest.raises(GitError) as caught:
        fetched(repo)
    assert f"moved to {repo.server.url}/acme/gadgets. Watch that URL instead." in str(caught.value)
    assert caught.value.for_every_watcher
    repo.server.on_request = lambda method, target: (
        redirect(method, target) or (None if method == "GET" else answer("400 Bad Request"))
    )
    assert str(ask(repo)) == str(caught.value)  # a host without protocol v2 is checked by git
    assert not any("gadgets" in request.target for request in repo.server.requests)


@pytest.mark.parametrize("name", ["group/sub/widgets", "scm/~anna/widgets", "org/My Project/_git/My Docs"])
def test_owner_with_several_segments(server: GitFixture, tmp_path, name: str) -> None:
    repo = server.repo(name, {"a.txt": b"1"}, token=TOKEN)
    url = parse_url(f"{server.url}/{quote(name, safe='/~')}").spelled
    with new_client(max_connections=1) as client:
        assert ls_head(client, url, f"anna:{TOKEN}") == Head(repo.head, "main")
        mirror = Mirror(tmp_path / "mirror.git")
        assert mirror.fetch(url, f"anna:{TOKEN}", repo.head, "watch", timeout=30, tick=lambda: None) == repo.head
    assert {request.user for request in server.server.requests if request.status == 200} == {"anna"}


def test_url_may_end_in_a_slash(repo: Repo, tmp_path) -> None:
    url = f"{repo.url}/"
    head = Head(repo.head, "main")
    with new_client(max_connections=1) as client:
        assert ls_head(client, url) == head
        for way in (client, None):  # one request, or `git fetch`
            mirror = Mirror(tmp_path / f"{way is None}.git")
            assert mirror.fetch(url, "", repo.head, "watch", timeout=30, tick=lambda: None, client=way) == repo.head
    assert ask_by_git(HeadQuery("watch", url)) == [("watch", head)]
    assert not any("//" in request.target for request in repo.server.requests)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_no_message_contains_the_token(repo: Repo, fetched: Callable[..., str], status: int) -> None:
    basic = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    echo = f"{TOKEN} {basic} https://x:{TOKEN}@h/"
    said = answer(f"{status} {echo}", f"X-Echo: {echo}", "Content-Type: text/plain", body=echo.encode())
    repo.server.on_request = lambda *_: said
    with pytest.raises(GitError) as caught:
        fetched(repo, token=TOKEN)
    for error in (caught.value, ask(repo, TOKEN)):
        assert TOKEN not in str(error)
        assert basic not in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"0000", b"garbage", b"zzzz", b"-001", b"0001", b"+fff", b"ffff", b"0004" * 1000, b"\0" * 60_000,
        b"0032" + b"g" * 40 + b" HEAD\n0000", b"003d" + b"1" * 50 + b" HEAD\n0000", b"0016ERR access denied\n0000",
    ],
    ids=range(13),
)  # fmt: skip
def test_malformed_response_gives_a_clear_error(repo: Repo, body: bytes) -> None:
    repo.server.on_request = lambda *_: answer("200 OK", body=body)
    assert str(ask(repo)).endswith((".", "push."))


@pytest.mark.parametrize("ref", ["", "main"])
@pytest.mark.parametrize("end", [b"", b"0000"], ids=["no flush", "flush"])
def test_error_packet_is_not_an_empty_repository(repo: Repo, ref: str, end: bytes) -> None:
    """git's protocol allows an error packet instead of any response, with status 200."""
    body = b"0031ERR the host is currently unable to help you." + end
    refused = answer("200 OK", "Content-Type: application/x-git-upload-pack-result", body=body)
    repo.server.on_request = lambda method, _: refused if method == "POST" else None
    with (
        new_client(max_connections=1) as client,
        pytest.raises(GitError, match="the host is currently unable") as caught,
    ):
        ls_head(client, repo.url, TOKEN, ref=ref)
    assert not isinstance(caught.value, NoCommit | RefNotFound)
    assert not caught.value.permanent


@pytest.mark.parametrize("ref", ["", "main"])
@pytest.mark.parametrize("body", [b"<html><title>Sign in</title></html>", b'{"error": "maintenance"}', b""])
def test_page_is_not_an_empty_repository(repo: Repo, ref: str, body: bytes) -> None:
    """git takes a page without a line break, even an empty one, for the list of a repository without refs."""
    repo.server.on_request = lambda *_: answer("200 OK", "Content-Type: text/html", body=body)
    with new_client(max_connections=1) as client, pytest.raises(GitError, match="text/html instead of refs") as caught:
        ls_head(client, repo.url, TOKEN, ref=ref)
    assert not isinstance(caught.value, NoCommit | RefNotFound)
    assert (caught.value.permanent, caught.value.for_every_watcher) == (False, True)


@pytest.mark.parametrize("ref", ["", "main"])
def test_empty_repository_on_a_host_without_protocol_v2(server: GitFixture, ref: str) -> None:
    repo = server.repo("acme/empty")
    server.server.speaks_v2 = False
    with new_client(max_connections=1) as client, pytest.raises(NoCommit):
        ls_head(client, repo.url, ref=ref)


def test_branch_name_is_made_safe_to_store(repo: Repo) -> None:
    line = b"1" * 40 + b" HEAD symref-target:refs/heads/a\0b\xff" + b"c" * 500 + b"\n"
    repo.server.on_request = lambda *_: answer("200 OK", body=b"%04x%b0000" % (len(line) + 4, line))
    with new_client(max_connections=1) as client:
        head = ls_head(client, repo.url)
    assert head.branch.startswith("a\ufffdb\ufffdccc")
    assert len(head.branch) == 255


def test_lease_is_kept_alive_during_git_ls_remote(repo: Repo) -> None:
    ticks: list[float] = []
    git_came: list[float] = []

    def slow(method: str, target: str) -> Takeover | None:
        if method == "POST" and not git_came:
            return answer("400 Bad Request")
        if not git_came:
            git_came.append(time.monotonic())
            time.sleep(2.5)
        return None

    repo.server.on_request = slow
    with new_client() as client:
        head = ls_head(client, repo.url, tick=lambda: ticks.append(time.monotonic()))
    assert head == Head(repo.head, "main")
    assert len([moment for moment in ticks if moment > git_came[0]]) >= 2


class OldHosts:
    """Hosts without protocol v2 that do not answer git, with two repositories each."""

    def __init__(self, directory: Path, count: int) -> None:
        self.came = threading.Event()
        self._ended = threading.Event()
        self._hosts = [GitFixture(directory / f"old-{number}") for number in range(count)]
        repos = [host.repo(f"acme/{name}", {"a.txt": b"1"}) for host in self._hosts for name in ("one", "two")]
        self.questions = [HeadQuery(repo.url, repo.url) for repo in repos]
        for host in self._hosts:
            host.server.on_request = self._hang

    def _hang(self, method: str, target: str) -> Takeover | None:
        if method == "POST":
            return answer("400 Bad Request")
        self.came.set()
        self._ended.wait(30)
        return None

    def close(self) -> None:
        self._ended.set()
        for host in self._hosts:
            host.server.stop()


@pytest.fixture
def old_hosts(tmp_path: Path) -> Iterator[OldHosts]:
    hosts = OldHosts(tmp_path, 3)
    yield hosts
    hosts.close()


def test_only_git_can_ask_hosts_without_protocol_v2(repo: Repo, old_hosts: OldHosts) -> None:
    with new_client() as client:
        answers = dict(ls_heads(client, [*old_hosts.questions, HeadQuery("new", repo.url)], lambda: None))
    assert answers.pop("new") == Head(repo.head, "main")
    assert list(answers.values()) == [None] * 6


def test_slow_old_hosts_share_the_time_for_one(repo: Repo, old_hosts: OldHosts, monkeypatch) -> None:
    """The first repository of each host times out, and the second one is skipped."""
    monkeypatch.setattr(remote, "GIT_SECONDS", 1.0)
    started = time.monotonic()
    answers = ask_by_git(*old_hosts.questions, HeadQuery("other", repo.url))
    assert time.monotonic() - started < 10
    assert ("other", Head(repo.head, "main")) in answers
    slow = [error for key, error in answers if key != "other"]
    assert [error.cause for error in slow if isinstance(error, GitError)] == [Cause.TIMEOUT] * 3


def test_exception_in_the_tick_ends_git(old_hosts: OldHosts) -> None:
    def tick() -> None:
        if old_hosts.came.is_set():
            raise Interrupted

    started = time.monotonic()
    with pytest.raises(Interrupted):
        ask_by_git(*old_hosts.questions, tick=tick)
    assert time.monotonic() - started < 10


def test_unreachable_host_affects_every_watch(repo: Repo) -> None:
    repo.server.stop()
    error = ask(repo, TOKEN)
    assert (error.cause, error.for_every_watcher, error.permanent) == (Cause.NETWORK, True, False)
    assert "connection refused" in str(error)


def test_names_without_an_answer_delay_no_other_host(repo: Repo, monkeypatch) -> None:
    """libcurl looks few names up at once, and would look up the good host's name only after these."""
    released = threading.Event()

    def getaddrinfo(host: bytes, *_: object, **__: object) -> list[tuple]:
        if host.startswith(b"silent"):
            assert released.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "No answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(remote, "_LOOKUP_SECONDS", 30.0, raising=False)
    silent = [HeadQuery(number, f"https://silent{number}.example/acme/widgets") for number in range(40)]
    good = HeadQuery("good", repo.url.replace("127.0.0.1", "good.example"))
    with new_client() as client:
        answers = ls_heads(client, [*silent, good], lambda: None)
        assert next(answers) == ("good", Head(repo.head, "main"))
        released.set()
        assert [error.no_connection for _, error in answers if isinstance(error, GitError)] == [True] * 40


def test_slow_hosts_delay_no_other_tenants_checks(server: GitFixture, repo: Repo, monkeypatch) -> None:
    monkeypatch.setattr(remote, "CONCURRENCY", 4)
    slow = server.repo("slow/widgets", {"a.txt": b"1"})
    healthy_answered = threading.Event()

    def wait_for_the_others(method: str, target: str) -> None:
        if "slow" in target:
            assert healthy_answered.wait(30)

    server.server.on_request = wait_for_the_others
    queries = [HeadQuery(f"slow{number}", slow.url, tenant=1) for number in range(9)]
    queries += [HeadQuery(f"good{number}", repo.url, tenant=2) for number in range(5)]
    with new_client() as client:
        answers = ls_heads(client, queries, lambda: None)
        assert {next(answers)[0] for _ in range(5)} == {f"good{number}" for number in range(5)}
        healthy_answered.set()
        assert sorted(key for key, _ in answers) == [f"slow{number}" for number in range(9)]


def test_many_repositories_of_an_unknown_host_do_not_end_the_round(repo: Repo, monkeypatch) -> None:
    """They may all fail at once, when nothing is in flight."""
    monkeypatch.setattr(remote, "CONCURRENCY", 5)
    unknown = [HeadQuery(number, f"https://unknown.invalid/acme/r{number}") for number in range(12)]
    with new_client() as client:
        answers = dict(ls_heads(client, [*unknown, HeadQuery("good", repo.url)], lambda: None))
    assert answers.pop("good") == Head(repo.head, "main")
    assert [isinstance(error, GitError) and error.no_connection for error in answers.values()] == [True] * 12


def test_endless_list_of_refs_takes_little_memory(repo: Repo) -> None:
    """The sweep lists the refs of hosts without protocol v2, of several at once."""
    packets = [b"# service=git-upload-pack\n", None, b"%s HEAD\0multi_ack\n" % repo.head.encode()]
    packets += [b"%s refs/heads/%s\n" % (repo.head.encode(), b"x" * 60_000)] * 900  # 54 MB
    body = b"".join(b"%04x%s" % (len(packet) + 4, packet) if packet else b"0000" for packet in [*packets, None])
    said = answer("200 OK", "Content-Type: application/x-git-upload-pack-advertisement", body=body)
    repo.server.on_request = lambda *_: said
    [(_, error)] = ask_by_git(HeadQuery("watch", repo.url))
    assert isinstance(error, GitError)
    assert error.cause is Cause.TOO_LARGE
