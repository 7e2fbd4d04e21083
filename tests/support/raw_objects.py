"""Git objects of any content, even ones that git refuses to write. No git process is started."""

import hashlib
import zlib

from tests.support.git import Repo, git

FILE, FOLDER, LINK, MODULE = b"100644", b"40000", b"120000", b"160000"


def write(repo: Repo, kind: bytes, content: bytes) -> bytes:
    """Write a loose object and return its id in hex."""
    raw = b"%b %d\0%b" % (kind, len(content), content)
    oid = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
    path = repo.path / "objects" / oid[:2] / oid[2:]
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(raw, 1))
    return oid.encode()


def blob(repo: Repo, content: bytes = b"x") -> bytes:
    return write(repo, b"blob", content)


def tree(repo: Repo, *entries: tuple[bytes, bytes, bytes]) -> bytes:
    """Write a tree of exactly these (mode, name, object id) in this order."""
    return write(repo, b"tree", b"".join(b"%b %b\0%b" % (mode, name, _binary(oid)) for mode, name, oid in entries))


def _binary(oid: bytes) -> bytes:
    return bytes.fromhex(oid.decode())


def serve(repo: Repo, root: bytes, branch: str = "main") -> str:
    """Make a commit of this tree, without a parent, the branch's newest. Return the commit's id."""
    lines = b"tree %b\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nHostile\n" % root
    commit = write(repo, b"commit", lines).decode()
    git(repo.path, "update-ref", f"refs/heads/{branch}", commit)
    return commit
