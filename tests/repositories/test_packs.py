"""Fetching with one request: a small pack over the HTTP client into `git index-pack`, and git itself for the rest."""

import hashlib
import os
import random
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from docora.http.client import HttpClient
from repositories_app.git import errors as git_errors
from repositories_app.git import packs, remote
from repositories_app.git import process as git
from repositories_app.git.exceptions import Cause, GitError, RepositoryMoved
from repositories_app.git.packs import Pack, fetch_pack
from repositories_app.git.process import Remote
from repositories_app.mirror import mirror as mirrors
from repositories_app.mirror.mirror import Mirror
from tests.docora.http_server import ScriptedServer, saying, servers
from tests.repositories.conftest import changed_paths, listed
from tests.support.git import GitFixture, Repo
from tests.support.git import git as run_git
from tests.support.processes import children, forked
from tests.support.receiver import wait_for

NAME = "1" * 40
AUTHOR = ("-c", "user.name=Anna", "-c", "user.email=anna@docora.example")
FILES = {f"folder/{number}.txt": b"content %d\n" % number * 20 for number in range(30)}


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with remote.new_client() as client:
        yield client


@pytest.fixture
def repo(server: GitFixture) -> Repo:
    repo = server.repo("acme/widgets", FILES)
    repo.commit({"folder/0.txt": b"changed"})  # so that the commit has a parent
    return repo


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The git commands that write into the mirror, in order."""
    commands: list[str] = []
    run = git.run

    def noted(args, **options):
        if args[0] in {"fetch", "index-pack"}:
            commands.append(args[0])
        return run(args, **options)

    monkeypatch.setattr(git, "run", noted)
    return commands


@pytest.fixture
def fetch(mirror: Mirror, client: HttpClient) -> Callable[..., str]:
    def fetch(repo: Repo, url: str = "", commit: str = "", watch: str = "watch", token: str = "") -> str:
        with mirror.in_use(lambda: None):
            return mirror.fetch(
                url or repo.url, token, commit or repo.head, watch, timeout=20, tick=lambda: None, client=client
            )

    return fetch


def contents(mirror: Mirror, commit: str) -> dict[str, bytes]:
    entries = listed(mirror, commit)
    with mirror.blobs() as reader:
        contents = reader.read([entry.blob for entry in entries])
        return {entry.path.decode(): content for entry, content in zip(entries, contents, strict=True)}


def name_of(repo: Repo, revision: str) -> str:
    return run_git(repo.path, "rev-parse", revision).decode().strip()


def pack_of(client: HttpClient, repo: Repo, *haves: str) -> Pack:
    pack = fetch_pack(client, Remote(repo.url), repo.head, haves=haves, shallow=haves, timeout=20, tick=lambda: None)
    assert pack is not None
    return pack


# --- With a host that speaks protocol v2 ------------------------------------------------------------------------------
def test_first_fetch_is_one_request_and_one_process(
    server: GitFixture, repo: Repo, mirror: Mirror, fetch, fetches: list[str]
) -> None:
    assert fetch(repo) == repo.head
    assert contents(mirror, repo.head) == repo.files()
    assert (len(server.server.requests), fetches) == (1, ["index-pack"])
    assert (mirror.directory / "shallow").read_text() == f"{repo.head}\n"
    assert git.run(["fsck", "--strict"], directory=mirror.directory) == b""


def test_change_brings_only_what_is_new(repo: Repo, mirror: Mirror, fetch, client: HttpClient) -> None:
    fetch(repo)
    before = repo.head
    mirror.keep_base("watch", before)
    repo.commit({"folder/1.txt": b"content 1\n" * 20 + b"and more", "new.txt": b"new", "folder/2.txt": None})
    assert len(pack_of(client, repo, before).content) < len(pack_of(client, repo).content) / 2
    assert fetch(repo) == repo.head
    assert contents(mirror, repo.head) == repo.files()
    assert changed_paths(mirror, before, repo.head) == [b"folder/1.txt", b"folder/2.txt", b"new.txt"]
    assert git.run(["fsck", "--strict"], directory=mirror.directory) == b""


@pytest.mark.parametrize("how", ["force push", "back to the parent", "merge", "root commit"])
def test_any_next_head_is_fetched(repo: Repo, mirror: Mirror, fetch, how: str) -> None:
    fetch(repo)
    mirror.keep_base("watch", repo.head)
    before = repo.head
    if how == "back to the parent":
        run_git(repo.path, "update-ref", f"refs/heads/{repo.branch}", f"{before}^")
    elif how == "merge":
        repo.commit({"side.txt": b"side"}, branch="side")
        tree = name_of(repo, f"{before}^{{tree}}")
        merge = (
            run_git(repo.path, *AUTHOR, "commit-tree", tree, "-p", before, "-p", "side", "-m", "Merge").decode().strip()
        )
        run_git(repo.path, "update-ref", f"refs/heads/{repo.branch}", merge)
    elif how == "root commit":
        tree = name_of(repo, f"{before}^{{tree}}")
        root = run_git(repo.path, *AUTHOR, "commit-tree", tree, "-m", "Root").decode().strip()
        run_git(repo.path, "update-ref", f"refs/heads/{repo.branch}", root)
    else:
        repo.force_push({"other.txt": b"other"})
    assert fetch(repo) == repo.head != before
    assert contents(mirror, repo.head) == repo.files()
    assert git.run(["fsck", "--strict"], directory=mirror.directory) == b""


def test_commit_that_another_watch_keeps_is_not_fetched_again(
    server: GitFixture, repo: Repo, fetch, fetches: list[str]
) -> None:
    fetch(repo, watch="one")
    fetch(repo, watch="other")
    assert (len(server.server.requests), fetches) == (1, ["index-pack"])


def test_base_of_the_watch_is_named_first(repo: Repo, mirror: Mirror, fetch, monkeypatch) -> None:
    """Only some of the commits that are here can be named."""
    monkeypatch.setattr(packs, "MAX_HAVES", 1)
    for number in range(5):
        repo.commit({"folder/0.txt": b"%d" % number})
        fetch(repo, watch=f"watch-{number}")
    mirror.keep_base("watch-4", repo.head)
    for watch in range(5):
        assert mirror._kept(f"watch-{watch}")[0] == mirror._read_file(
            f"refs/docora/watch-{watch}/{'base' if watch == 4 else 'run'}"
        )


def test_commit_of_a_run_that_failed_is_not_kept(repo: Repo, mirror: Mirror, fetch) -> None:
    base = fetch(repo)
    mirror.keep_base("watch", base)
    repo.commit({"new.txt": b"new"})
    assert mirror._kept("watch") != [fetch(repo)]
    mirror.keep_base("watch", base)  # the host is back at it
    assert mirror._kept("watch") == [base]


def test_hundreds_of_changes_are_repacked(repo: Repo, mirror: Mirror, fetch, monkeypatch) -> None:
    monkeypatch.setattr(mirrors, "MAX_PACKS", 5)
    for number in range(20):
        repo.commit({"folder/0.txt": b"%d" % number})
        fetch(repo)
        mirror.keep_base("watch", repo.head)
        mirror.repack_if_many(lambda: {"watch"})
    assert contents(mirror, repo.head) == repo.files()
    assert len((mirror.directory / "shallow").read_text().split()) <= 7


def test_large_pack_is_left_to_git(repo: Repo, mirror: Mirror, fetch, fetches: list[str], monkeypatch) -> None:
    monkeypatch.setattr(packs, "MAX_PACK", 100_000)
    repo.commit({"large.bin": random.Random(1).randbytes(200_000)})
    assert fetch(repo) == repo.head
    assert fetches == ["fetch"]
    assert contents(mirror, repo.head) == repo.files()


def test_small_limit_holds_for_packs_too(repo: Repo, mirror: Mirror, fetch, settings) -> None:
    settings.MAX_FETCH_BYTES = 100_000
    repo.commit({"large.bin": random.Random(1).randbytes(200_000)})
    with pytest.raises(GitError, match="larger than MAX_FETCH_BYTES"):
        fetch(repo)


def test_mirror_that_lost_its_packs_gets_everything(repo: Repo, mirror: Mirror, fetch, fetches: list[str]) -> None:
    fetch(repo)
    mirror.keep_base("watch", repo.head)
    for pack in (mirror.directory / "objects" / "pack").iterdir():
        pack.unlink()
    assert fetch(repo) == repo.head
    assert fetches == ["index-pack", "index-pack"]
    assert contents(mirror, repo.head) == repo.files()


# --- With other hosts -------------------------------------------------------------------------------------------------
def packet(data: bytes) -> bytes:
    return b"%04x%s" % (len(data) + 4, data)


def answer(*sections: bytes) -> bytes:
    return b"0001".join(sections) + b"0000"


def shallow_info(*lines: str) -> bytes:
    return packet(b"shallow-info\n") + b"".join(packet(f"{line}\n".encode()) for line in lines)


def packfile(*parts: bytes) -> bytes:
    return packet(b"packfile\n") + b"".join(map(packet, parts))


@pytest.fixture
def host() -> Iterator[Callable[..., ScriptedServer]]:
    """Return a function that starts a host with one answer."""
    with servers() as start:
        yield lambda body, status="200 OK", *headers: start(saying(status, body, *headers))


MALFORMED = {
    "nothing": b"",
    "no protocol": b"<html>Welcome</html>",
    "an error": packet(b"ERR upload-pack: not our ref"),
    "an error in the pack": answer(packfile(b"\1PACK", b"\3out of memory")),
    "another section": answer(packet(b"acknowledgments\n") + packet(b"NAK\n"), packfile(b"\1PACK")),
    "a commit that got its parents": answer(shallow_info(f"unshallow {NAME}"), packfile(b"\1PACK")),
    "no object's name": answer(shallow_info("shallow ../../../../etc/passwd"), packfile(b"\1PACK")),
    "a name of the other object format": answer(
        shallow_info(f"shallow {'1' * (104 - len(NAME))}"), packfile(b"\1PACK")
    ),
    "a name with a line break": answer(shallow_info(f"shallow {NAME[:-2]}\n1"), packfile(b"\1PACK")),
    "a name after a line break": answer(shallow_info(f"shallow \n{NAME[1:]}"), packfile(b"\1PACK")),
    "a length with a sign": packet(b"packfile\n") + b"+00a" + b"\1PACK" + b"0000",
    "no pack": answer(packfile(b"\2Counting objects")),
    "something else than a pack": answer(packfile(b"\1PUCK")),
    "an end in the middle": answer(packfile(b"\1PACK"))[:-4],
    "a packet that is cut off": answer(packfile(b"\1PACK"))[:-6],
    "a length below 4": packet(b"packfile\n") + b"0002",
    "a length of 4": packet(b"packfile\n") + b"0004" + b"0000",
    "no length": b"zzzz",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_answer_that_is_no_pack_is_left_to_git(client: HttpClient, host, body: bytes) -> None:
    url = host(body).url
    assert fetch_pack(client, Remote(url), NAME, haves=[], shallow=[], timeout=5, tick=lambda: None) is None


def test_answer_of_several_parts(client: HttpClient, host) -> None:
    body = answer(shallow_info(f"shallow {NAME}"), packfile(b"\1PA", b"\2Counting", b"\1CK", b"\1..."))
    pack = fetch_pack(client, Remote(host(body).url), NAME, haves=[], shallow=[], timeout=5, tick=lambda: None)
    assert pack == Pack(bytearray(b"PACK..."), [NAME])


@pytest.mark.parametrize(
    ("status", "headers", "cause"),
    [
        ("401 Unauthorized", [], Cause.NOT_FOUND),
        ("404 Not Found", [], Cause.NOT_FOUND),
        ("429 Too Many Requests", ["Retry-After: 7"], Cause.NETWORK),
        ("503 Service Unavailable", [], Cause.NETWORK),
    ],
)
def test_refusal_is_raised(client: HttpClient, host, status: str, headers: list[str], cause: Cause) -> None:
    url = host(b"no", status, *headers).url
    with pytest.raises(GitError) as raised:
        fetch_pack(client, Remote(url), NAME, haves=[], shallow=[], timeout=5, tick=lambda: None)
    assert raised.value.cause is cause


def test_redirect_is_not_followed(client: HttpClient, host) -> None:
    url = host(b"", "301 Moved Permanently", "Location: http://127.0.0.1/acme/renamed/git-upload-pack").url
    with pytest.raises(RepositoryMoved):
        fetch_pack(client, Remote(url), NAME, haves=[], shallow=[], timeout=5, tick=lambda: None)


def test_token_is_sent_and_never_shown(client: HttpClient, host) -> None:
    server = host(b"no", "403 Forbidden")
    with pytest.raises(GitError) as raised:
        fetch_pack(client, Remote(server.url, "ghp_secret"), NAME, haves=[], shallow=[], timeout=5, tick=lambda: None)
    assert b"authorization: basic" in server.requests[0][0].lower()
    assert "ghp_secret" not in str(raised.value)


@pytest.mark.parametrize("what", ["incomplete", "damaged", "a bomb"])
def test_pack_that_is_not_whole_leaves_nothing_behind(
    repo: Repo, mirror: Mirror, client: HttpClient, host, fetches: list[str], what: str
) -> None:
    """git is asked next, and says what is wrong."""
    if what == "incomplete":  # only the commit, without its tree and files
        content = bytearray(git_pack(repo, [repo.head]))
    elif what == "damaged":
        content = pack_of(client, repo).content
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"PACK\0\0\0\2" + b"\xff\xff\xff\xff" + bytes(100))
    body = answer(shallow_info(f"shallow {repo.head}"), packfile(b"\1" + content))
    with pytest.raises(GitError), mirror.in_use(lambda: None):
        mirror.fetch(host(body).url, "", repo.head, "watch", timeout=20, tick=lambda: None, client=client)
    assert fetches[0] == "index-pack"
    assert "fetch" in fetches
    assert not list((mirror.directory / "objects").rglob("*pack*/*"))
    assert not (mirror.directory / "refs" / "docora").exists()


def test_pack_that_takes_too_long_is_not_fetched_again(
    server: GitFixture, repo: Repo, fetch, fetches: list[str], monkeypatch
) -> None:
    noted = git.run

    def late(args, **options):
        noted(args, **options)
        raise git_errors.explain(Cause.TIMEOUT, "git took longer than 20 seconds")

    monkeypatch.setattr(git, "run", late)
    with pytest.raises(GitError, match="took longer"):
        fetch(repo)
    assert (len(server.server.requests), fetches) == (1, ["index-pack"])


def git_pack(repo: Repo, names: list[str]) -> bytes:
    """Return a pack with only these objects."""
    return run_git(repo.path, "pack-objects", "--stdout", "-q", stdin=[f"{name}\n".encode() for name in names])


def test_pack_without_the_commit_cannot_be_read(repo: Repo, mirror: Mirror, client: HttpClient, host) -> None:
    blob = name_of(repo, f"{repo.head}:folder/1.txt")
    body = answer(packfile(b"\1" + git_pack(repo, [blob])))
    with mirror.in_use(lambda: None):
        mirror.fetch(host(body).url, "", repo.head, "watch", timeout=20, tick=lambda: None, client=client)
        with pytest.raises(GitError) as raised:
            listed(mirror, repo.head)
    assert raised.value.cause is Cause.CORRUPT


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def bomb() -> bytes:
    """Return a pack of 20 kB whose objects have 10 GB: a blob of zeros, and deltas that copy it ten times each."""
    zeros = bytes(0xFFFFFF)
    name = hashlib.sha1(b"blob %d\0" % len(zeros) + zeros, usedforsecurity=False).digest()
    objects = [(3, len(zeros), b"", zeros)]
    for number in range(60):
        size = varint(len(zeros)) + varint(10 * len(zeros) + 1)
        delta = size + b"\xf0\xff\xff\xff" * 10 + bytes([1, number])
        objects.append((7, len(delta), name, delta))
    packed = b"".join(
        bytes([kind << 4 | size & 15 | 128]) + varint(size >> 4) + base + zlib.compress(content)
        for kind, size, base, content in objects
    )
    pack = b"PACK" + (2).to_bytes(4) + len(objects).to_bytes(4) + packed
    return pack + hashlib.sha1(pack, usedforsecurity=False).digest()


def test_killed_worker_takes_index_pack_with_it(mirror: Mirror, host) -> None:
    """A small pack may keep git busy for days. It would hold the mirror's lock meanwhile."""
    pack = bomb()
    url = host(answer(shallow_info(f"shallow {NAME}"), packfile(b"\1" + pack))).url

    def fetch() -> None:
        with remote.new_client() as client, mirror.in_use(lambda: None):
            mirror.fetch(url, "", NAME, "watch", timeout=60, tick=lambda: None, client=client)

    def is_indexing(pid: int) -> bool:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return command.startswith(b"git") and b"index-pack" in command

    worker = forked(fetch)
    wait_for(lambda: any(map(is_indexing, children(worker))))
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_for(lambda: mirror.remove(wait=False), timeout=2)
