"""Fetch one small commit with a single protocol v2 request. git itself would start four processes.

`man gitprotocol-v2` describes the request and the sections of the answer. Everything else, such as large packs and
hosts without the protocol, is left to git, whose error messages say what is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings

from docora.http.client import HttpClient, Outcome
from repositories_app.git import process as git
from repositories_app.git import remote
from repositories_app.git.protocol import OBJECT_NAME, command, object_format, packets

MAX_PACK = 8 << 20
"""Bytes of an answer, which is held in memory. `MAX_FETCH_BYTES` may allow less; git then refuses the repository."""
MAX_HAVES = 64
_MAX_SHALLOW = 1000
_DATA, _ERROR = 1, 3  # bands; 2 carries progress messages


@dataclass(frozen=True, slots=True)
class Pack:
    """What a host sent: the bytes of a pack, and the commits whose parents it left out."""

    content: bytearray
    shallow: list[str]


def fetch_pack(
    client: HttpClient,
    origin: git.Remote,
    commit: str,
    *,
    haves: Sequence[str],
    shallow: Sequence[str],
    timeout: float,
    tick: git.Tick,
) -> Pack | None:
    """Return a pack with `commit`, without its history and without what is reachable from the `haves`.

    Return None if git should fetch instead. `shallow` lists the mirror's commits whose parents it does not have. `client`
    must be idle, and `timeout` is in seconds. Raises `GitError` if the host cannot be reached or refuses.
    """
    if not OBJECT_NAME.fullmatch(commit.encode()) or len(shallow) > _MAX_SHALLOW:
        return None
    body = _request(commit, haves[:MAX_HAVES], shallow)
    max_body = min(MAX_PACK, settings.MAX_FETCH_BYTES)
    request = remote.upload_pack_request(origin, body, max_body=max_body, timeout=timeout)
    outcome = client.request(request, tick)
    remote.require_answer(origin, outcome)
    return parse_answer(outcome, len(commit)) if outcome.ok and not outcome.truncated else None


def _request(commit: str, haves: Sequence[str], shallow: Sequence[str]) -> bytes:
    arguments = ["no-progress", "ofs-delta", *(["thin-pack"] if haves else []), "deepen 1", f"want {commit}"]
    arguments += [f"shallow {name}" for name in shallow] + [f"have {name}" for name in haves] + ["done"]
    return command("fetch", arguments, object_format(commit))


def parse_answer(outcome: Outcome, digits: int) -> Pack | None:
    """Return the pack in an answer to `fetch`, or None if there is none: then git fetches, and says what is wrong.

    `digits` is the length of object names.
    """
    shallow: list[str] = []
    content = bytearray()
    section = b""
    try:
        for packet in packets(memoryview(outcome.body)):
            if packet is None:
                section = b""
            elif not section:
                section = bytes(packet).rstrip(b"\n")
            elif section == b"shallow-info":
                kind, _, name = bytes(packet).rstrip(b"\n").partition(b" ")
                if kind != b"shallow":  # `unshallow`: the host has sent a commit's parents
                    return None
                # Names are written into a file of the mirror.
                if len(name) != digits or not OBJECT_NAME.fullmatch(name):
                    return None
                shallow.append(name.decode("ascii"))
            elif section == b"packfile":
                if packet[0] == _ERROR:
                    return None
                if packet[0] == _DATA:
                    content += packet[1:]
            else:
                return None
    except ValueError:
        return None
    return Pack(content, shallow) if content.startswith(b"PACK") else None
