"""git's network commands connect only to checked addresses, with limits on time, size and memory."""

import gzip
import hashlib
import os
import socket
import time
import zlib
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.mirror import Mirror
from tests.docora.http_server import saying, servers
from tests.support.git import GitFixture, Repo
from tests.support.git import git as run_git


@pytest.fixture
def repo(server: GitFixture) -> Repo:
    return server.repo("acme/widgets", {"a.txt": b"1"})


@pytest.fixture
def dns(monkeypatch):
    """Set what names resolve to for Docora. git's own resolver knows none of them."""

    def answering(*addresses: str) -> list[bytes]:
        asked: list[bytes] = []

        def getaddrinfo(host: bytes, *_: object, **__: object) -> list[tuple]:
            asked.append(host)
            return [(0, 1, 6, "", (address, 0)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return answering


def config(environment: dict[str, str]) -> dict[str, str]:
    count = int(environment["GIT_CONFIG_COUNT"])
    return {environment[f"GIT_CONFIG_KEY_{n}"]: environment[f"GIT_CONFIG_VALUE_{n}"] for n in range(count)}


def fetch(mirror: Mirror, url: str, commit: str, token: str = "") -> str:
    with mirror.in_use(lambda: None):
        return mirror.fetch(url, token, commit, "watch", timeout=30, tick=lambda: None)


# --- Addresses --------------------------------------------------------------------------------------------------------
def test_git_connects_to_the_pinned_address(mirror: Mirror, repo: Repo, dns) -> None:
    asked = dns("127.0.0.1")
    url = repo.url.replace("127.0.0.1", "git.example")
    assert fetch(mirror, url, repo.head) == repo.head
    assert asked == [b"git.example"]


@pytest.mark.parametrize(
    ("url", "addresses", "pin"),
    [
        ("https://git.example/a/b", ["8.8.8.8"], "git.example:443:8.8.8.8"),
        ("http://git.example/a/b", ["8.8.8.8"], "git.example:80:8.8.8.8"),
        ("https://Git.Example:8443/a/b", ["8.8.8.8", "1.1.1.1"], "git.example:8443:8.8.8.8,1.1.1.1"),
        ("https://git.example/a/b", ["2606:4700::1", "8.8.8.8"], "git.example:443:[2606:4700::1],8.8.8.8"),
        ("https://git.example/a/b", ["8.8.8.8"] * 9, "git.example:443:8.8.8.8"),
        ("https://8.8.8.8/a/b", [], None),
        ("https://[2606:4700::1]/a/b", [], None),
    ],
)
def test_pin_contains_every_checked_address(dns, url: str, addresses: list[str], pin: str | None) -> None:
    dns(*addresses)
    assert config(git.environment(git.Remote(url))).get("http.curloptResolve") == pin


def test_ipv6_addresses_are_pinned_in_brackets(mirror: Mirror, repo: Repo, dns, settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = [ip_network("127.0.0.0/8"), ip_network("fd00::/8")]
    dns("fd12::1", "127.0.0.1")  # the first one does not answer
    assert fetch(mirror, repo.url.replace("127.0.0.1", "git.example"), repo.head) == repo.head


@pytest.mark.parametrize(
    "addresses", [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["::ffff:10.0.0.1"], ["::1"]]
)
def test_blocked_name_is_not_dialled(mirror: Mirror, repo: Repo, dns, addresses: list[str]) -> None:
    dns(*addresses)
    with pytest.raises(GitError, match="ALLOWED_PRIVATE_NETWORKS") as caught:
        fetch(mirror, repo.url.replace("127.0.0.1", "git.example"), repo.head)
    assert (caught.value.cause, caught.value.for_every_watcher) == (Cause.NETWORK, True)
    assert repo.server.requests == []


def test_address_in_the_url_is_checked(mirror: Mirror, repo: Repo, settings) -> None:
    settings.ALLOWED_PRIVATE_NETWORKS = []
    with pytest.raises(GitError, match="loopback address"):
        fetch(mirror, repo.url, repo.head)
    assert repo.server.requests == []


def test_unknown_name_has_a_clear_message(mirror: Mirror, repo: Repo) -> None:
    with pytest.raises(GitError, match=r"Couldn't reach no-such-host\.invalid: DNS lookup failed"):
        fetch(mirror, "http://no-such-host.invalid/acme/widgets", repo.head)


# --- Hostile hosts and environments -------------------------------------------------------------------------------------
def test_proxy_settings_are_ignored(mirror: Mirror, repo: Repo, monkeypatch) -> None:
    with servers() as start:
        proxy = start()
        for name in ("http_proxy", "https_proxy", "all_proxy", "ALL_PROXY", "GIT_PROXY_COMMAND"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert fetch(mirror, repo.url, repo.head) == repo.head
        assert proxy.connections == 0


def test_git_ignores_environment_and_configuration(monkeypatch, tmp_path) -> None:
    (tmp_path / ".gitconfig").write_text('[url "http://evil.example/"]\n\tinsteadOf = https://\n')
    for name in ("GIT_SSH_COMMAND", "GIT_EXEC_PATH", "GIT_DIR", "GIT_TRACE", "LD_PRELOAD", "GIT_CONFIG_PARAMETERS"):
        monkeypatch.setenv(name, "evil")
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = git.environment()
    assert "evil" not in str(environment)
    assert environment["HOME"] == "/nonexistent"
    assert git.run(["config", "--list", "--show-scope"]).count(b"command\t") == int(environment["GIT_CONFIG_COUNT"])
    assert b"insteadof" not in git.run(["config", "--list"])


@pytest.mark.parametrize(("allow_http", "protocols"), [(False, "https"), (True, "https:http")])
def test_only_https_and_allowed_http(settings, allow_http: bool, protocols: str) -> None:
    settings.ALLOW_HTTP = allow_http
    environment = git.environment()
    assert environment["GIT_ALLOW_PROTOCOL"] == protocols
    assert {key for key, value in config(environment).items() if key.startswith("protocol.") and value == "always"} == {
        f"protocol.{name}.allow" for name in protocols.split(":")
    }


@pytest.mark.parametrize(
    "url", ["ext::touch {}", "file://{}", "fd::7", "ssh://127.0.0.1/{}", "git://127.0.0.1/{}", "{}"]
)
def test_git_refuses_every_other_transport(server: GitFixture, tmp_path, url: str) -> None:
    repo = server.repo("acme/local", {"a": b"1"})
    trace = tmp_path / "trace"
    place = url.format(trace if "touch" in url else repo.path)
    with pytest.raises(GitError):
        git.run(["ls-remote", "--", place])
    assert not trace.exists()


def test_token_goes_to_its_own_host_only(dns) -> None:
    dns("8.8.8.8")
    found = config(git.environment(git.Remote("https://git.example:8443/a/b", "ghp_secret")))
    [key] = [key for key in found if key.lower().endswith("extraheader")]
    assert key == "http.https://git.example:8443/.extraHeader"
    assert "ghp_secret" not in repr(git.Remote("https://git.example/a/b", "ghp_secret"))


def test_dumb_http_host_cannot_redirect_git(mirror: Mirror, repo: Repo) -> None:
    with servers() as start:
        inner = start()
        pages = {
            b"/info/refs": b"1" * 40 + b"\trefs/heads/main\n",
            b"/HEAD": b"ref: refs/heads/main\n",
            b"alternates": f"http://127.0.0.1:{inner.port}/objects\n".encode(),
        }

        def dumb(connection: socket.socket, head: bytes, body: bytes) -> bool:
            page = next((page for name, page in pages.items() if name in head.split(b"\r\n")[0]), None)
            return saying("200 OK" if page else "404 Not Found", page or b"")(connection, head, body)

        url = f"http://127.0.0.1:{start(dumb).port}/acme/widgets"
        assert b"refs/heads/main" in git.run(["ls-remote", "--", url], remote=git.Remote(url))
        with pytest.raises(GitError) as caught:
            fetch(mirror, url, "1" * 40)
        assert str(caught.value).endswith(".")
        fetch(mirror, repo.url, repo.head)  # the mirror still works
        with pytest.raises(GitError):  # without --depth git would fetch the objects itself
            git.run(["fetch", "--", url, "+HEAD:refs/x"], directory=mirror.directory, remote=git.Remote(url))
        assert inner.connections == 0


@pytest.mark.parametrize(("proxy", "place"), [("", "inner"), ("http://127.0.0.1:{}", "inner"), ("", "outer")])
def test_host_cannot_name_packs(mirror: Mirror, settings, proxy: str, place: str) -> None:
    def packet(line: bytes) -> bytes:
        return b"%04x%b" % (len(line) + 4, line)

    commit = b"1" * 40
    blob = b"PACK" + bytes.fromhex("00000002 00000001 30") + zlib.compress(b"")
    pack = b"\1" + blob + hashlib.sha1(blob, usedforsecurity=False).digest()
    with servers() as start:
        inner = start()
        answers = {
            b"info/refs": packet(b"# service=git-upload-pack\n")
            + b"0000"
            + b"".join(map(packet, [b"version 2\n", b"ls-refs\n", b"fetch=shallow\n"]))
            + b"0000",
            b"command=ls-refs": packet(commit + b" HEAD\n") + b"0000",
            b"command=fetch": packet(b"packfile-uris\n")
            + packet(b"%b http://127.0.0.1:%05d/latest/meta-data" % (commit, 0))
            + b"0001"
            + packet(b"packfile\n")
            + packet(pack)
            + b"0000",
        }

        def answer(connection: socket.socket, head: bytes, body: bytes) -> bool:
            content = next(content for name, content in answers.items() if name in head + body)
            content = content.replace(b":00000/", b":%05d/" % (inner if place == "inner" else outer).port)
            kind = "advertisement" if b"info/refs" in head else "result"
            return saying("200 OK", content, f"Content-Type: application/x-git-upload-pack-{kind}")(
                connection, head, body
            )

        settings.EGRESS_PROXY = proxy.format(inner.port)
        outer = start(answer)
        with pytest.raises(GitError, match="failed to get 'http' url"):
            fetch(mirror, f"http://127.0.0.1:{outer.port}/acme/widgets", commit.decode())
        assert {head.split(b"?")[0].split(b" HTTP")[0] for head, _ in outer.requests} == {
            b"GET /acme/widgets/info/refs",
            b"POST /acme/widgets/git-upload-pack",
        }
        assert inner.connections == 0
        assert list((mirror.directory / "objects/pack").iterdir()) == []


# --- Limits -----------------------------------------------------------------------------------------------------------
def test_repository_beyond_the_size_limit_is_refused(
    server: GitFixture, mirror: Mirror, fetched: Callable[..., str], settings
) -> None:
    repo = server.repo("acme/big", {"big.bin": os.urandom(3_000_000)})
    settings.MAX_FETCH_BYTES = 1_000_000
    with pytest.raises(GitError) as caught:
        fetched(repo)
    assert str(caught.value) == (
        "The repository is larger than MAX_FETCH_BYTES (1.0 MB). An administrator can raise the limit."
    )
    assert (caught.value.cause, caught.value.permanent) == (Cause.TOO_LARGE, True)
    assert [path for path in (mirror.directory / "objects").rglob("*") if path.is_file()] == []
    settings.MAX_FETCH_BYTES = 10_000_000
    assert fetched(repo) == repo.head


def test_decompression_bomb_in_an_object_is_refused(server: GitFixture, fetched, monkeypatch) -> None:
    repo = server.repo("acme/bomb", {"zeros": bytes(20_000_000)})
    plain = git.environment
    monkeypatch.setattr(git, "environment", lambda remote=None: plain(remote) | {"GIT_ALLOC_LIMIT": "10m"})
    with pytest.raises(GitError, match="The repository is too large: ") as caught:
        fetched(repo)
    assert caught.value.cause is Cause.TOO_LARGE


def test_decompression_bomb_in_a_response_is_refused(monkeypatch) -> None:
    plain = git.environment
    monkeypatch.setattr(git, "environment", lambda remote=None: plain(remote) | {"GIT_ALLOC_LIMIT": "10m"})
    refs = b"001e# service=git-upload-pack\n0000" + b"003d%b refs/heads/main\n" % (b"1" * 40) * 1_000_000
    head = ("Content-Type: application/x-git-upload-pack-advertisement", "Content-Encoding: gzip")
    with servers() as start:
        url = f"http://127.0.0.1:{start(saying('200 OK', gzip.compress(refs), *head)).port}/acme/bomb"
        with pytest.raises(GitError, match="The repository is too large: ") as caught:
            git.run(["ls-remote", "--", url, "HEAD"], remote=git.Remote(url))
    assert caught.value.cause is Cause.TOO_LARGE


def test_endless_response_is_cut_off(server: GitFixture, fetched: Callable[..., str], monkeypatch) -> None:
    monkeypatch.setattr(git, "_MAX_STDERR", 100_000)
    repo = server.repo("acme/chatty", {"a": b"1"})

    def chatter(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-result\r\n\r\n")
        connection.sendall(b"000dpackfile\n")
        line = b"\2" + b"blah " * 1000 + b"\n"
        while True:
            connection.sendall(b"%04x%b" % (len(line) + 4, line))
            time.sleep(0.001)

    posts: list[str] = []

    def after_the_refs(method: str, target: str):
        if method == "POST":
            posts.append(target)
            return chatter
        return None

    repo.server.on_request = after_the_refs
    started = time.monotonic()
    with pytest.raises(GitError) as caught:
        fetched(repo)
    assert time.monotonic() - started < 20
    assert len(str(caught.value)) < 700


def test_endless_ref_list_is_not_held_in_memory(server: GitFixture, monkeypatch) -> None:
    monkeypatch.setattr(git, "MAX_OUTPUT", 60_000)
    repo = server.repo("acme/refs", {"a": b"1"})
    commands = "".join(f"create refs/heads/{n:04}/HEAD {repo.head}\n" for n in range(1500))
    run_git(repo.path, "update-ref", "--stdin", stdin=[commands.encode()])
    with pytest.raises(GitError, match="its listing exceeds the limit"):
        git.run(["ls-remote", "--", repo.url, "HEAD"], remote=git.Remote(repo.url))
