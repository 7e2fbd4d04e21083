"""The parts of git's protocol v2 that Docora speaks itself: packets, `ls-refs` and its answer. Pure.

`man gitprotocol-v2` and `man gitprotocol-common` describe them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from docora.text import clean_text
from repositories_app.git.exceptions import NoCommit, RefNotFound
from repositories_app.git.refs import HEAD, full_names, short_name

OBJECT_NAME = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")
SHA1, SHA256 = "sha1", "sha256"
_LENGTH = re.compile(rb"[0-9a-fA-F]{4}")


@dataclass(frozen=True, slots=True)
class Head:
    """The commit that a watch follows, and its branch or tag (empty when HEAD is detached).

    `name` is the requested ref: HEAD, or the full name of the branch or tag. A tag's commit is what the tag points
    to.
    """

    commit: str
    branch: str
    name: str = HEAD


def _packet(line: str) -> bytes:
    data = line.encode()
    return b"%04x%s" % (len(data) + 4, data)


def object_format(commit: str) -> str:
    """Return the object format of a repository with this commit. Without a commit, return the default, SHA-1."""
    return SHA256 if len(commit) == 64 else SHA1


def command(name: str, arguments: Sequence[str], object_format: str) -> bytes:
    """Return the body of a protocol v2 request."""
    head = b"".join(map(_packet, [f"command={name}\n", "agent=docora\n", f"object-format={object_format}"]))
    return head + b"0001" + b"".join(_packet(f"{argument}\n") for argument in arguments) + b"0000"


def ls_refs_request(ref: str, object_format: str, *, all_refs: bool = False) -> bytes:
    """Return the request body for HEAD or for a branch or tag, or with `all_refs` for everything.

    It also asks for HEAD, to tell a missing ref from an empty repository.
    """
    if all_refs:
        return command("ls-refs", ["ref-prefix refs/"], object_format)
    if not ref:
        return command("ls-refs", ["symrefs", "ref-prefix HEAD"], object_format)
    prefixes = [f"ref-prefix {name}" for name in [HEAD, *full_names(ref)]]
    return command("ls-refs", ["symrefs", "peel", *prefixes], object_format)


def parse_ls_refs(answer: bytes, ref: str) -> Head | None:
    """Return HEAD, or the branch or tag `ref`, from an `ls-refs` answer, or None if it is malformed or incomplete.

    Raises `NoCommit` if the repository has no refs, and `RefNotFound` if it has only other refs. These are errors rather
    than an empty tree, because clients must not delete their files when a host loses a branch.
    """
    names = full_names(ref)
    found: dict[str, Head] = {}
    has_refs = False
    try:
        for packet in packets(memoryview(answer)):
            line = bytes(packet or b"").rstrip(b"\n").split(b" ")
            if len(line) < 2 or not OBJECT_NAME.fullmatch(line[0]):
                return None  # an `ERR` packet, for example: not an empty repository
            has_refs = True
            name = line[1].decode("utf-8", "replace")
            if name in names:
                found[name] = _head_of(name, line)
            if names[0] in found:  # a host may also list thousands of branches whose names only begin with this one
                return found[names[0]]
    except ValueError:
        return None
    return preferred(found, ref, has_refs=has_refs)


def packets(answer: memoryview) -> Iterator[memoryview | None]:
    """Yield the packets of an answer (`gitprotocol-common`) up to the flush packet, and None for a delimiter.

    Raises ValueError if the answer is malformed.
    """
    position = 0
    while True:
        digits = bytes(answer[position : position + 4])
        if not _LENGTH.fullmatch(digits):
            raise ValueError("a packet has no length")
        length = int(digits, 16)
        if length == 0:
            return
        if length == 1:
            yield None
            position += 4
            continue
        packet = answer[position + 4 : position + length]
        if not 4 < length == len(packet) + 4:
            raise ValueError("a packet is truncated")
        yield packet
        position += length


def preferred(found: Mapping[str, Head], ref: str, *, has_refs: bool) -> Head:
    """Return what `ref` means among the refs found, by their full names. `has_refs`: the repository has some refs.

    Raises `NoCommit` and `RefNotFound`, as `parse_ls_refs` does.
    """
    for name in full_names(ref):
        if name in found:
            return found[name]
    raise RefNotFound(ref) if ref and has_refs else NoCommit(ref)


def _head_of(name: str, line: Sequence[bytes]) -> Head:
    """Return the ref described by a line, which has the object's id, the ref's name and attributes."""
    attributes = dict(part.split(b":", 1) for part in line[2:] if b":" in part)
    if name == HEAD:
        target = attributes.get(b"symref-target", b"").decode("utf-8", "replace")
        return Head(line[0].decode("ascii"), branch_of(target))
    peeled = attributes.get(b"peeled", b"")
    commit = peeled if OBJECT_NAME.fullmatch(peeled) else line[0]
    return Head(commit.decode("ascii"), branch_of(name), name)


def branch_of(ref: str) -> str:
    """Return the branch or tag to store and show."""
    return clean_text(short_name(ref), 255)
