"""Branches and tags: which names are allowed, and what a host's answers say about them. Real git on both sides."""

import subprocess
from collections.abc import Callable

import pytest

from repositories_app.git import process
from repositories_app.git.exceptions import Cause, GitError, NoCommit, RefNotFound
from repositories_app.git.protocol import Head, parse_ls_refs
from repositories_app.git.refs import InvalidRef, parse_ref
from repositories_app.git.remote import HeadQuery, ls_head, ls_heads, new_client
from repositories_app.mirror.mirror import Mirror
from tests.repositories.conftest import listed
from tests.support.git import GitFixture, Repo, git, git_environment, has_commit

ALLOWED = ["main", "v1.2", "feature/x", "refs/heads/main", "refs/tags/v1", "größe", "a@b", "a.b/c-d_e", "x" * 255, "日本", "@a",
           "refs", "a{b}", "a$b", "#1", "!", "it's", 'say"x"', "heads/main"]  # fmt: skip
REFUSED = ["a b", "a..b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a@{b", "@", ".a", "a/.b", "a.lock", "a.lock/b", "/a",
           "a/", "a.", "a//b", "-a", "a\x7fb", "a\tb", "a\nb", "x" * 256]  # fmt: skip
ONLY_OURS = ["refs/pull/1/head", "refs/heads", "refs/notes/x", "a\u200bb", "a\ud800"]


def git_allows(ref: str) -> bool:
    name = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
    done = subprocess.run(["git", "check-ref-format", name], env=git_environment(), check=False)
    return done.returncode == 0


@pytest.mark.parametrize("ref", ALLOWED, ids=lambda ref: ref[:20])
def test_allowed_names_are_allowed_by_git(ref: str) -> None:
    assert parse_ref(f" {ref}\n") == ref
    assert git_allows(ref)


@pytest.mark.parametrize("ref", [*REFUSED, *ONLY_OURS], ids=ascii)
def test_refused_names(ref: str) -> None:
    with pytest.raises(InvalidRef) as caught:
        parse_ref(ref)
    assert "can" in str(caught.value) or "must" in str(caught.value)
    if ref in REFUSED and ref not in {"@", "-a", "x" * 256}:
        assert not git_allows(ref)


def test_head_is_the_empty_name() -> None:
    assert parse_ref("HEAD") == parse_ref("  ") == ""


# --- What the host answers -------------------------------------------------------------------------------------------


@pytest.fixture(params=["v2", "v0"])
def protocol(request: pytest.FixtureRequest, server: GitFixture) -> str:
    server.server.speaks_v2 = request.param == "v2"
    return request.param


@pytest.fixture(params=["sha1", "sha256"])
def repo(request: pytest.FixtureRequest, server: GitFixture) -> Repo:
    repo = server.repo("acme/widgets", {"a.txt": b"main"}, object_format=request.param)
    repo.commit({"a.txt": b"dev"}, branch="dev")
    repo.commit({"a.txt": b"longer"}, branch="dev-2")
    repo.commit({"a.txt": b"both"}, branch="both")
    repo.tag("v1", "dev")
    repo.tag("v2", "dev", annotated=True)
    repo.tag("of-a-tag", "v2", annotated=True)
    repo.tag("both", "main")
    return repo


def ask(repo: Repo, ref: str) -> Head:
    with new_client(max_connections=1) as client:
        return ls_head(client, repo.url, ref=ref)


NAMED = {
    "": ("main", "main", "HEAD"),
    "main": ("main", "main", "refs/heads/main"),
    "dev": ("dev", "dev", "refs/heads/dev"),
    "v1": ("dev", "v1", "refs/tags/v1"),
    "v2": ("dev", "v2", "refs/tags/v2"),
    "of-a-tag": ("dev", "of-a-tag", "refs/tags/of-a-tag"),
    "both": ("refs/heads/both", "both", "refs/heads/both"),
    "refs/tags/both": ("main", "both", "refs/tags/both"),
    "refs/heads/dev": ("dev", "dev", "refs/heads/dev"),
}


def test_commit_of_a_branch_or_tag(repo: Repo, protocol: str) -> None:
    for ref, (revision, branch, name) in NAMED.items():
        assert ask(repo, ref) == Head(repo.commit_of(revision), branch, name), ref


def test_missing_ref_is_named(repo: Repo, protocol: str) -> None:
    for ref in ("de", "dev-", "v", "gone", "refs/heads/v1", "refs/tags/dev"):
        with pytest.raises(RefNotFound) as caught:
            ask(repo, ref)
        kinds = {"refs/heads/v1": ("branch", "v1"), "refs/tags/dev": ("tag", "dev")}
        kind, name = kinds.get(ref, ("branch or tag", ref))
        assert str(caught.value).startswith(f'The repository has no {kind} named "{name}". Push it, or choose another')
        assert (caught.value.cause, caught.value.for_every_watcher) == (Cause.NOT_FOUND, False), ref


def test_missing_ref_of_a_repository_without_its_default_branch(repo: Repo, protocol: str) -> None:
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    with pytest.raises(NoCommit):
        ask(repo, "")
    with pytest.raises(RefNotFound):
        ask(repo, "gone")
    assert ask(repo, "dev").commit == repo.commit_of("dev")


def test_missing_ref_among_more_refs_than_can_be_listed(repo: Repo, monkeypatch) -> None:
    """A list that is too long shows that the repository isn't empty, so only the branch is missing."""
    repo.server.speaks_v2 = False
    monkeypatch.setattr(process, "MAX_OUTPUT", 60_000)
    commands = "".join(f"create refs/heads/{number:04} {repo.head}\n" for number in range(1500))
    git(repo.path, "update-ref", "--stdin", stdin=[commands.encode()])
    git(repo.path, "symbolic-ref", "HEAD", "refs/heads/unborn")
    with pytest.raises(RefNotFound):
        ask(repo, "gone")


def test_detached_head_is_on_no_branch(repo: Repo, protocol: str) -> None:
    git(repo.path, "update-ref", "--no-deref", "HEAD", repo.head)
    assert ask(repo, "") == Head(repo.head, "")


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_empty_repository_has_no_commit(server: GitFixture, protocol: str, object_format: str) -> None:
    empty = server.repo("acme/empty", object_format=object_format)
    for ref in ("", "main", "refs/tags/v1"):
        with pytest.raises(NoCommit):
            ask(empty, ref)


def test_ref_is_one_request(repo: Repo) -> None:
    with new_client(max_connections=1) as client:
        commit = ls_head(client, repo.url, ref="dev").commit
        before = len(repo.server.requests)
        for ref in ("dev", "v2", "refs/tags/v1"):
            ls_head(client, repo.url, commit=commit, ref=ref)
    assert len(repo.server.requests) == before + 3


def test_many_refs_are_asked_for_together(repo: Repo) -> None:
    refs = ["", "dev", "v2", "gone"]
    with new_client() as client:
        questions = [HeadQuery(ref, repo.url, ref=ref) for ref in refs]
        answers = dict(ls_heads(client, questions, lambda: None))
    assert isinstance(answers.pop("gone"), RefNotFound)
    assert {ref: head.commit for ref, head in answers.items() if isinstance(head, Head)} == {
        "": repo.commit_of("main"),
        "dev": repo.commit_of("dev"),
        "v2": repo.commit_of("dev"),
    }


def test_tag_behind_thousands_of_branches_with_its_prefix(server: GitFixture) -> None:
    """The answer is cut off before the tag. git finds it."""
    repo = server.repo("acme/busy", {"a.txt": b"1"})
    lines = [f"create refs/heads/v-{number:05} {repo.head}\n" for number in range(2000)]
    git(repo.path, "update-ref", "--stdin", stdin=[line.encode() for line in lines])
    repo.tag("v", annotated=True)
    assert ask(repo, "v") == Head(repo.head, "v", "refs/tags/v")
    assert ask(repo, "v-00000").commit == repo.head
    with pytest.raises(RefNotFound):
        ask(repo, "v-")


def packet(line: bytes) -> bytes:
    return b"%04x%b" % (len(line) + 4, line)


@pytest.mark.parametrize(
    "line",
    [
        b"1" * 40 + b" refs/heads/main-2\n",
        b"1" * 40 + b" refs/remotes/x/refs/heads/main\n",
        b"1" * 40 + b" refs/heads/Main\n",
        b"1" * 40 + b" HEAD symref-target:refs/heads/main\n",
        b"1" * 40 + b" refs/tags/main^{}\n",
    ],
)
def test_only_the_exact_name_counts(line: bytes) -> None:
    with pytest.raises(RefNotFound):
        parse_ls_refs(packet(line) + b"0000", "main")


def test_malformed_attributes_of_a_ref() -> None:
    line = b"1" * 40 + b" refs/tags/v1 peeled:zzz peeled unborn:\xff\n"
    assert parse_ls_refs(packet(line) + b"0000", "v1") == Head("1" * 40, "v1", "refs/tags/v1")
    assert parse_ls_refs(packet(line), "v1") is None  # the branch of this name may still come


# --- The mirror ------------------------------------------------------------------------------------------------------


def fetch(mirror: Mirror, repo: Repo, ref: str, watch: str) -> str:
    head = ask(repo, ref)
    with mirror.in_use(lambda: None), new_client(max_connections=1) as client:
        return mirror.fetch(
            repo.url, "", head.commit, watch, timeout=60, tick=lambda: None, name=head.name, client=client
        )


def fetches(repo: Repo, act: Callable[[], object]) -> int:
    """Return how many requests for objects an action makes, beside those of `ask`: one for each object format."""
    before = len(repo.server.requests)
    act()
    return len(repo.server.requests) - before - (1 if len(repo.head) == 40 else 2)


def test_mirror_keeps_the_commits_of_all_watches(repo: Repo, mirror: Mirror) -> None:
    """Alternating fetches of several refs lose no object, and fetch none again."""
    refs = {"a": "", "b": "dev", "c": "v2", "d": "both"}
    for watch, ref in refs.items():
        mirror.keep_base(watch, fetch(mirror, repo, ref, watch))
    for number in range(5):
        repo.commit({f"new-{number}": b"%d" % number}, branch="dev")
        for watch, ref in refs.items():
            asked = fetches(repo, lambda watch=watch, ref=ref: mirror.keep_base(watch, fetch(mirror, repo, ref, watch)))
            assert asked == (1 if ref == "dev" else 0), ref
    mirror._git(["repack", "-a", "-d", "-q"])
    mirror._git(["prune", "--expire=now"])
    for ref in refs.values():
        revision = NAMED[ref][0]
        assert has_commit(mirror, repo.commit_of(revision))
        with mirror.in_use(lambda: None):
            assert {entry.path.decode() for entry in listed(mirror, repo.commit_of(revision))} == set(
                repo.files(revision)
            )
    assert mirror._git(["fsck", "--strict", "--no-dangling"]) == b""


def forget_unreachable(repo: Repo) -> None:
    git(repo.path, "repack", "-a", "-d", "-q")
    git(repo.path, "prune", "--expire=now")


@pytest.mark.parametrize("ref", ["dev", "v1", "v2", "of-a-tag"])
def test_host_that_serves_no_commit_by_name(repo: Repo, mirror: Mirror, ref: str) -> None:
    """Then git fetches what the branch or tag is now."""
    before = ask(repo, ref)
    for name in {"v1", "v2", "of-a-tag"} - {ref}:
        repo.delete_ref(f"refs/tags/{name}")
    repo.force_push({"a.txt": b"rewritten"}, branch="dev")
    if ref != "dev":
        repo.tag(ref, "dev", annotated=ref != "v1")
    forget_unreachable(repo)
    with mirror.in_use(lambda: None):
        found = mirror.fetch(repo.url, "", before.commit, "watch", timeout=60, tick=lambda: None, name=before.name)
        assert found == repo.commit_of(ref) != before.commit
        assert (mirror.directory / "refs/docora/watch/run").read_text().strip() == found


def test_ref_that_is_gone_when_it_is_fetched(repo: Repo, mirror: Mirror) -> None:
    """The replica that serves the objects lags, for a while."""
    head = ask(repo, "dev")
    repo.delete_ref("refs/heads/dev")
    for name in ("v1", "v2", "of-a-tag"):
        repo.delete_ref(f"refs/tags/{name}")
    repo.delete_ref("refs/heads/dev-2")
    forget_unreachable(repo)
    with mirror.in_use(lambda: None), pytest.raises(GitError) as caught:
        mirror.fetch(repo.url, "", head.commit, "watch", timeout=60, tick=lambda: None, name=head.name)
    assert str(caught.value) == (
        'The git host lists the branch named "dev", but doesn\'t serve it yet. Docora retries automatically.'
    )
    assert not caught.value.permanent
