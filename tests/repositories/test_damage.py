"""A damaged mirror is recognised, so that it is rebuilt instead of failing forever."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror import tree
from repositories_app.mirror.mirror import Mirror
from tests.repositories.conftest import listed
from tests.support.git import GitFixture, Repo, git

FILES = {"a.txt": b"a" * 5000, "folder/b.txt": b"b", "folder/deeper/c.txt": b"c"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository, and a mirror that has fetched it."""
    folder = tmp_path_factory.mktemp("whole")
    mirror = Mirror(folder / "mirror")
    with GitFixture(folder / "git") as server, mirror.in_use(lambda: None):
        repo = server.repo("acme/widgets", FILES)
        mirror.fetch(repo.url, "", repo.head, "watch", timeout=60.0, tick=lambda: None)
        repo.path.rename(folder / "repository")
    return folder


@pytest.fixture
def repo(server: GitFixture, whole: Path) -> Repo:
    repo = Repo("acme/widgets", server.directory / "acme" / "widgets.git", server)
    shutil.copytree(whole / "repository", repo.path)
    return repo


@pytest.fixture
def commit(repo: Repo, mirror: Mirror, whole: Path) -> str:
    """The commit that the mirror has fetched from the repository."""
    shutil.copytree(whole / "mirror", mirror.directory)
    return repo.head


def pack(mirror: Mirror, suffix: str) -> Path:
    found = next((mirror.directory / "objects/pack").glob(f"*.{suffix}"))
    found.chmod(0o600)
    return found


def loose(mirror: Mirror) -> None:
    """Unpack all objects into files of their own."""
    content = pack(mirror, "pack").read_bytes()
    shutil.rmtree(mirror.directory / "objects/pack")
    git(mirror.directory, "unpack-objects", "-q", stdin=[content])


def object_file(mirror: Mirror, what: str) -> Path:
    name = git(mirror.directory, "rev-parse", what).decode().strip()
    found = mirror.directory / "objects" / name[:2] / name[2:]
    found.chmod(0o600)
    return found


def truncated_pack(mirror: Mirror, commit: str) -> None:
    content = pack(mirror, "pack").read_bytes()
    pack(mirror, "pack").write_bytes(content[: len(content) // 2])


def garbage_in_pack(mirror: Mirror, commit: str) -> None:
    content = bytearray(pack(mirror, "pack").read_bytes())
    content[12:-20] = b"\x5a" * (len(content) - 32)
    pack(mirror, "pack").write_bytes(content)


def emptied_pack(mirror: Mirror, commit: str) -> None:
    pack(mirror, "pack").write_bytes(b"")


def lost_pack(mirror: Mirror, commit: str) -> None:
    pack(mirror, "pack").unlink()


def garbage_index(mirror: Mirror, commit: str) -> None:
    pack(mirror, "idx").write_bytes(b"garbage" * 300)


def truncated_index(mirror: Mirror, commit: str) -> None:
    content = pack(mirror, "idx").read_bytes()
    pack(mirror, "idx").write_bytes(content[:-30])


def lost_index(mirror: Mirror, commit: str) -> None:
    pack(mirror, "idx").unlink()


def lost_packs(mirror: Mirror, commit: str) -> None:
    shutil.rmtree(mirror.directory / "objects/pack")


def lost_objects(mirror: Mirror, commit: str) -> None:
    shutil.rmtree(mirror.directory / "objects")


def empty_commit(mirror: Mirror, commit: str) -> None:
    loose(mirror)
    object_file(mirror, commit).write_bytes(b"")


def empty_tree(mirror: Mirror, commit: str) -> None:
    loose(mirror)
    object_file(mirror, f"{commit}^{{tree}}").write_bytes(b"")


def garbage_tree(mirror: Mirror, commit: str) -> None:
    loose(mirror)
    object_file(mirror, f"{commit}:folder").write_bytes(b"garbage")


def lost_tree(mirror: Mirror, commit: str) -> None:
    loose(mirror)
    object_file(mirror, f"{commit}:folder/deeper").unlink()


def lost_file(mirror: Mirror, commit: str) -> None:
    loose(mirror)
    object_file(mirror, f"{commit}:folder/b.txt").unlink()


def empty_file(mirror: Mirror, commit: str) -> None:
    loose(mirror)
    object_file(mirror, f"{commit}:a.txt").write_bytes(b"")


def garbage_head(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "HEAD").write_bytes(b"\0garbage\n")


def garbage_config(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "config").write_bytes(b"[core\n\0")


def half_config(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "config").write_bytes(b"[core]\n\trepositoryformatversion =")


def config_of_another_git(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "config").write_bytes(b"[core]\n\trepositoryformatversion = 99\n")


def folder_as_config(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "config").unlink()
    (mirror.directory / "config").mkdir()


def folder_as_index(mirror: Mirror, commit: str) -> None:
    index = pack(mirror, "idx")
    index.unlink()
    index.mkdir()


def folder_as_ref(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "refs/docora/watch/base").mkdir()
    (mirror.directory / "refs/docora/watch/base/x").write_bytes(b"x")


def garbage_packed_refs(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "packed-refs").write_bytes(b"garbage\n")


def garbage_ref(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "refs/docora/watch/run").write_bytes(b"garbage\n")


def zeros_in_ref(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "refs/docora/watch/run").write_bytes(b"\0" * 41)


def garbage_shallow(mirror: Mirror, commit: str) -> None:
    (mirror.directory / "shallow").write_bytes(b"garbage\n")


def alternates_pointing_nowhere(mirror: Mirror, commit: str) -> None:
    lost_pack(mirror, commit)
    (mirror.directory / "objects/info").mkdir(exist_ok=True)
    (mirror.directory / "objects/info/alternates").write_text("/nonexistent/objects\n")


DAMAGE = [
    truncated_pack, garbage_in_pack, emptied_pack, lost_pack, garbage_index, truncated_index, lost_index, lost_packs,
    lost_objects, empty_commit, empty_tree, garbage_tree, lost_tree, lost_file, empty_file, garbage_head, garbage_config,
    half_config, config_of_another_git, folder_as_config, folder_as_index, folder_as_ref, garbage_packed_refs, garbage_ref, zeros_in_ref, garbage_shallow, alternates_pointing_nowhere,
]  # fmt: skip


def read_all(mirror: Mirror, commit: str, base: str) -> list[bytes]:
    """Read what a sync reads: the whole tree, the diff to the base and every blob. Then keep the base."""
    entries = listed(mirror, commit)
    with mirror.blobs() as reader:
        tree.differences(reader, base, commit, lambda: None)
        contents = list(reader.read([entry.blob for entry in entries]))
        assert contents == [b"".join(reader.stream(entry.blob)) for entry in entries]
    mirror.keep_base("watch", commit)
    return contents


@pytest.mark.parametrize("moved", [False, True], ids=["same commit", "new commit"])
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_any_damage_is_detected_or_harmless(
    mirror: Mirror, repo: Repo, fetched: Callable[..., str], commit: str, damage, moved: bool
) -> None:
    damage(mirror, commit)
    if moved:
        repo.commit({"d.txt": b"d"})
    error = None
    try:
        contents = read_all(mirror, fetched(repo), commit)
    except GitError as raised:
        error = raised
        mirror.remove(lambda: None)
        contents = read_all(mirror, fetched(repo), repo.head)
    assert contents == list(repo.files().values())
    if error is not None:
        assert (error.cause, error.permanent, error.for_every_watcher) == (Cause.CORRUPT, False, False), str(error)
        assert "The mirror is damaged and will be rebuilt" in str(error)


def test_damaged_base_of_one_delta(mirror: Mirror, server: GitFixture, fetched: Callable[..., str]) -> None:
    """The pack of the next commit is whole. git can't apply its delta to the folder, and blames the pack."""
    repo = server.repo("acme/flat", {f"{number:03}.txt": b"%d" % number for number in range(200)})
    root = git(mirror.directory, "rev-parse", f"{fetched(repo)}^{{tree}}").decode().strip()
    known = git(mirror.directory, "verify-pack", "-v", str(pack(mirror, "idx"))).decode().splitlines()
    _, _, _, size, offset = next(line for line in known if line.startswith(root)).split()
    content = bytearray(pack(mirror, "pack").read_bytes())
    content[int(offset) + int(size) // 2] ^= 0xFF
    pack(mirror, "pack").write_bytes(content)
    repo.commit({"100.txt": b"changed"})
    with pytest.raises(GitError, match="The mirror is damaged and will be rebuilt"):
        fetched(repo)
