"""The git server of the demo and the tests, with real clients and sockets."""

import contextlib
import gzip
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deliveries_app.demo.git_server import GitServer
from deliveries_app.demo.repositories import make_demo_repositories
from tests.support.commands import PROJECT
from tests.support.git import Entry, GitFixture, Repo, git
from tests.support.receiver import wait_for

LS_REFS = b"0014command=ls-refs\n0001000csymrefs\n0014ref-prefix HEAD\n0000"
LS_REFS_HEADERS = {
    "Content-Type": "application/x-git-upload-pack-request",
    "Accept": "application/x-git-upload-pack-result",
    "Git-Protocol": "version=2",
}


@pytest.fixture
def served(tmp_path):
    with GitFixture(tmp_path) as fixture:
        yield fixture


def ls_refs(repo: Repo, body=LS_REFS, **headers: str) -> tuple[int, bytes]:
    """Request HEAD with one POST, as Docora does. Return the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", repo.server.port, timeout=10)
    try:
        connection.request("POST", f"/{repo.name}/git-upload-pack", body, LS_REFS_HEADERS | headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_clone_over_protocol_2(served):
    repo = served.repo(files={"a.txt": b"a\r\n", "ü/b": b"\0\xff", "run": Entry.executable(b"#!/bin/sh\n")})
    served.run("clone", repo.url, "copy")
    copy = served.directory / "copy"
    assert {path: (copy / path).read_bytes() for path in repo.files()} == repo.files()
    assert os.access(copy / "run", os.X_OK)
    assert {request.git_protocol for request in served.server.requests} == {"version=2"}


def test_ls_remote_with_every_url_spelling(served):
    repo = served.repo("acme/next.js", {"a": b"1"}, branch="trunk")
    for url in (repo.url, f"{repo.url}/", f"{repo.url}.git"):
        answer = served.run("ls-remote", "--symref", url, "HEAD").stdout.decode()
        assert answer == f"ref: refs/heads/trunk\tHEAD\n{repo.head}\tHEAD\n"


def test_ls_refs_takes_one_request(served):
    repo = served.repo(files={"a": b"1"})
    status, answer = ls_refs(repo)
    assert status == 200
    assert f"{repo.head} HEAD symref-target:refs/heads/main".encode() in answer
    assert len(served.server.requests) == 1


def test_compressed_request(served):
    repo = served.repo(files={"a": b"1"})
    assert ls_refs(repo, gzip.compress(LS_REFS), **{"Content-Encoding": "gzip"}) == ls_refs(repo)


def test_connection_is_reused_after_every_status(served):
    served.repo("acme/open", {"a": b"1"})
    served.repo("acme/closed", {"a": b"1"}, token="secret")
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=10)
    statuses = []
    for name in ("open", "closed", "missing", "open"):
        connection.request("POST", f"/acme/{name}/git-upload-pack", LS_REFS, LS_REFS_HEADERS)
        sock = connection.sock
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
        assert connection.sock is sock
    connection.close()
    assert statuses == [200, 401, 404, 200]


def test_shallow_partial_fetch_by_commit_id(served):
    repo = served.repo(files={"a": b"first"})
    first = repo.head
    repo.commit({"a": b"second"})
    served.run("init", "--bare", "mirror")
    served.run("-C", "mirror", "fetch", "--depth=1", "--filter=blob:none", repo.url, first)
    assert served.run("-C", "mirror", "rev-parse", "FETCH_HEAD").stdout.decode().strip() == first


def test_push_is_refused(served):
    repo = served.repo(files={"a": b"1"})
    served.run("clone", repo.url, "copy")
    assert served.run("-C", "copy", "push", "origin", "HEAD:refs/heads/other", check=False).returncode != 0


def test_private_repository_needs_its_token(served):
    repo = served.repo("acme/secret", {"a": b"1"}, token="right")
    served.repo("acme/other", {"a": b"1"}, token="wrong")
    host = f"127.0.0.1:{served.server.port}"
    assert served.run("ls-remote", repo.url, check=False).returncode != 0
    assert served.run("ls-remote", f"http://x:wrong@{host}/acme/secret", check=False).returncode != 0
    assert served.run("ls-remote", f"http://anybody:right@{host}/acme/secret").stdout.startswith(repo.head.encode())
    assert served.server.requests[-1].token == "right"
    served.tokens["acme/secret"].clear()
    assert served.run("ls-remote", f"http://x:right@{host}/acme/secret", check=False).returncode != 0


@pytest.mark.parametrize(
    "target",
    [
        "/acme/secret/info/refs?service=git-upload-pack",
        "/acme/secret.git/info/refs?service=git-upload-pack",
        "//acme/secret/info/refs?service=git-upload-pack",
        "/acme//secret/info/refs?service=git-upload-pack",
        "/x/../acme/secret/info/refs?service=git-upload-pack",
        "/acme/secret.git.git/info/refs?service=git-upload-pack",
        "/acme/%73ecret/info/refs?service=git-upload-pack",
        "/../secret/info/refs",
        "/acme/secret.git/config",
        "/acme/secret.git/HEAD",
    ],
)
def test_url_spelling_does_not_bypass_the_token(served, target):
    served.repo("acme/secret", {"a": b"1"}, token="right")
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=10)
    connection.request("GET", target)
    assert connection.getresponse().status in (401, 404)
    connection.close()


def test_on_request_answers_with_a_status(served):
    repo = served.repo(files={"a": b"1"})
    statuses = iter([503, 404])
    served.server.on_request = lambda method, target: next(statuses, None)
    assert [ls_refs(repo)[0] for _ in range(3)] == [503, 404, 200]
    assert [request.status for request in served.server.requests] == [503, 404, 200]


def test_on_request_takes_over_the_connection(served):
    repo = served.repo(files={"a": b"1"})

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(3):
            connection.sendall(b"x")
            time.sleep(0.01)

    served.server.on_request = lambda method, target: trickle
    with pytest.raises(http.client.IncompleteRead):
        ls_refs(repo)


def test_stop_ends_hanging_requests_and_git_processes(served):
    repo = served.repo("acme/big", {f"f{n}": os.urandom(1_000_000) for n in range(20)})
    with socket.create_connection(("127.0.0.1", served.server.port)) as reader:
        body = b"0011command=fetch0001" + f"0032want {repo.head}\n".encode() + b"0009done\n0000"
        fields = LS_REFS_HEADERS | {"Host": "x", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        reader.sendall(f"POST /acme/big/git-upload-pack HTTP/1.1\r\n{head}\r\n".encode() + body)
        assert b"200" in reader.recv(1000)
        wait_for(lambda: git_processes(repo.path))  # git blocks because the client stops reading
        served.server.stop()
        wait_for(lambda: not git_processes(repo.path))


def git_processes(repository: Path) -> list[str]:
    """Return the ids of the processes whose working directory is this repository."""
    ids = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == repository:
                ids.append(link.parent.name)
    return ids


def test_concurrent_clients(served):
    repo = served.repo(files={f"f{n}": b"%d" % n for n in range(50)})
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ls_refs(repo)[0])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 20


def test_demo_repositories(tmp_path):
    make_demo_repositories(tmp_path)
    names = sorted(str(path.relative_to(tmp_path).with_suffix("")) for path in tmp_path.glob("*/*"))
    assert names == ["acme/assets", "acme/handbook", "acme/legacy", "acme/website"]
    with GitServer(tmp_path) as server:
        repositories = {name: Repo(name, tmp_path / f"{name}.git", server) for name in names}
        heads = {name: repo.head for name, repo in repositories.items()}
        repositories["acme/legacy"].commit({"new": b"1"})
        changed = repositories["acme/legacy"].head
        make_demo_repositories(tmp_path)
        assert {name: repo.head for name, repo in repositories.items()} == heads | {"acme/legacy": changed}
        assert repositories["acme/legacy"].branch == "master"
        assert len(repositories["acme/website"].files()) > 400
        large = [path for path, content in repositories["acme/assets"].files().items() if len(content) > 1024 * 1024]
        assert large == ["data/catalogue.csv", "data/recording.bin"]
        for repo in repositories.values():
            assert git(repo.path, "fsck", "--strict") == b""


def test_demo_repositories_in_a_locale_without_utf_8(tmp_path):
    make_demo_repositories(tmp_path / "here")
    code = "import sys; from pathlib import Path; from deliveries_app.demo.repositories import make_demo_repositories as make; make(Path(sys.argv[1]))"
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}  # as in a locale such as de_DE.ISO-8859-1, which must be installed
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")], env=os.environ | posix, cwd=PROJECT, check=True
    )
    for repository in sorted((tmp_path / "here").glob("*/*")):
        other = tmp_path / "there" / repository.relative_to(tmp_path / "here")
        assert git(other, "rev-parse", "HEAD") == git(repository, "rev-parse", "HEAD")


def test_commits_contain_exactly_the_changes(served):
    name = 'with "quotes" and \\ and \n a line'
    repo = served.repo(files={name: b"1", "link": Entry.symlink("a"), "sub": Entry.submodule("1" * 40), "a": b"a"})
    assert repo.files() == {name: b"1", "a": b"a"}
    repo.commit({name: None, "b": b"b"})
    assert repo.files() == {"a": b"a", "b": b"b"}
    repo.rename_branch("trunk")
    assert (repo.branch, set(repo.files())) == ("trunk", {"a", "b"})
    repo.force_push({"only": b"1"})
    assert (repo.files(), git(repo.path, "rev-list", "--count", "HEAD")) == ({"only": b"1"}, b"1\n")


def test_large_repository(served):
    repo = served.make_large(count=2000, size=100)
    files = repo.files()
    assert (len(files), {len(content) for content in files.values()}) == (2000, {100})
    assert len(set(files.values())) == 2000
