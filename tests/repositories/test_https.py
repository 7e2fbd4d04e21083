"""Git hosts with https, as in production: the other tests use http."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from docora.http.client import HttpClient
from repositories_app.git import process, remote
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.git.remote import HeadQuery, HeadsByGit, ls_head, new_client
from repositories_app.mirror.mirror import Mirror
from tests.repositories.conftest import listed
from tests.support.git import GitFixture
from tests.support.tls import self_signed

TOKEN = "ghp_NeverSeen42"


@pytest.fixture
def ca_file(server: GitFixture, tmp_path: Path, settings) -> str:
    """Let the git server speak https, as `localhost`. Return the path of its certificate."""
    settings.ALLOW_HTTP = False
    context, path = self_signed(tmp_path)
    listener = server.server._server
    assert listener is not None
    listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    return path


@pytest.fixture
def trusted(ca_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the certificate, as if the system did."""
    monkeypatch.setattr(remote, "HttpClient", partial(HttpClient, ca_file=ca_file))
    monkeypatch.setitem(process._ALWAYS, "http.sslCAInfo", ca_file)


@pytest.mark.parametrize("speaks_v2", [True, False])
def test_check_and_fetch(server: GitFixture, mirror: Mirror, trusted: None, *, speaks_v2: bool) -> None:
    """The client fetches the small commit, unless the host is old, and git the large one."""
    server.server.speaks_v2 = speaks_v2
    repo = server.repo("acme/widgets", {"a.txt": b"1"}, token=TOKEN)
    url = f"https://localhost:{server.server.port}/acme/widgets"
    for files in ({"b.txt": b"2"}, {"large.bin": os.urandom(9 << 20)}):
        commit = repo.commit(files)
        with new_client() as client, mirror.in_use(lambda: None):
            assert ls_head(client, url, TOKEN).commit == commit
            mirror.fetch(url, TOKEN, commit, "watch", timeout=60, tick=lambda: None, client=client)
    assert [entry.path for entry in listed(mirror, commit)] == [b"a.txt", b"b.txt", b"large.bin"]


def test_untrusted_certificate(server: GitFixture, ca_file: str) -> None:
    url = f"https://localhost:{server.server.port}/acme/widgets"
    with new_client() as client, pytest.raises(GitError) as caught:
        ls_head(client, url, TOKEN)
    with HeadsByGit[Any]() as by_git:
        by_git.ask([HeadQuery("git", url, TOKEN)])
        while by_git.proceed(1.0):
            pass
        [(_, by_git_error)] = by_git.answers()
    assert server.server.requests == []
    for error in (caught.value, by_git_error):
        assert isinstance(error, GitError)
        assert (error.cause, error.permanent) == (Cause.NETWORK, False)
        assert "certificate" in str(error)
        assert "Check the host's certificate and this server's certificate authorities" in str(error)
