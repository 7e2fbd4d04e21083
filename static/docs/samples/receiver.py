"""A complete client app of Docora: verifies every notification, and keeps a copy of every repository on disk. Python 3.9
or newer, no packages.

    DOCORA_KEY='the signing key of your app' PORT=9000 COPIES=./copies python receiver.py

Below COPIES each repository has a folder of its own: `files` is the copy, `sequences` the highest number that was seen
of every path, `incoming` what is not complete yet, `epoch` which watch of the repository the copy was made from. All of it
survives a restart.
"""

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOLERANCE_SECONDS = 300  # a request that is older may be a recorded one that somebody plays again
MAX_BODY_BYTES = 8 * 1024 * 1024  # enough: larger files come in chunks
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE | re.DOTALL)
ONE_AT_A_TIME = threading.Lock()  # Docora sends several files at once, never two notifications of one path


class Refused(Exception):
    """Answer with this status instead of a 2xx. Docora shows the text to an administrator, and sends it again."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def verify(headers: Mapping[str, str], body: bytes, key: str) -> bool:
    """Return whether the request was signed with the key less than five minutes ago. Docora signs every request twice.

    X-Docora-Signature covers the time and the body, webhook-signature covers webhook-id as well. While the key is being
    replaced, webhook-signature holds one signature for each key.
    """
    now = time.time()
    timestamps = headers.get("X-Docora-Timestamp", ""), headers.get("webhook-timestamp", "")
    if not all(re.fullmatch("[0-9]{1,12}", each) and abs(now - int(each)) <= TOLERANCE_SECONDS for each in timestamps):
        return False
    digest = hmac.new(key.encode(), timestamps[0].encode() + b"." + body, hashlib.sha256).hexdigest()
    if not same(headers.get("X-Docora-Signature", ""), f"sha256={digest}"):
        return False
    secret = base64.b64decode(key[6:] + "===") if key.startswith("whsec_") else key.encode()
    signed = f"{headers.get('webhook-id', '')}.{timestamps[1]}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return any(same(given, expected) for given in headers.get("webhook-signature", "").split())


def same(given: str, expected: str) -> bool:
    """Compare in constant time. With `==`, the time would reveal where the two differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


def watch_and_sequence(headers: Mapping[str, str]) -> "tuple[str, int]":
    """Return what the signed webhook-id says. X-Docora-Sequence is not signed: anybody may have changed it.

    A number far in the future would make your app ignore everything that comes later, so it is refused.
    """
    parts = re.fullmatch("msg_([A-Za-z0-9]{1,64})_([0-9]{1,16})(_[A-Za-z0-9-]+_[0-9]+)?", headers.get("webhook-id", ""))
    if not parts or int(parts[2]) > min(2**53 - 1, (time.time() + 86_400) * 1_000_000):
        raise Refused(422, "webhook-id holds no watch and sequence, or the sequence is more than a day ahead.")
    return parts[1], int(parts[2])


def check_event(event: str, notification: dict) -> None:
    """Refuse a body that belongs to another address. The address is not signed: anybody may have changed it."""
    file = notification.get("file")
    if event not in ("create", "update", "delete"):
        fits = notification.get("event") == event
    else:
        fits = isinstance(file, dict) and ("content" in file) == (event != "delete")
    if not fits:
        raise Refused(422, f"The body is not that of a {event}.")


def handle(event: str, notification: dict, headers: Mapping[str, str]) -> str:
    """Does what a verified notification says, and tells what was done. Only then it is answered: a 2xx is a promise."""
    if event not in ("ping", "create", "update", "delete", "sync_failed", "sync_completed"):
        raise Refused(404, "There is nothing at this address.")
    check_event(event, notification)
    if event == "ping":
        return "pong"
    if event == "sync_failed":
        return notification["error"]["message"]
    repository = notification["repository"]["repository_id"]
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", repository):
        raise Refused(422, "repository_id is no name of a folder.")
    watch, sequence = watch_and_sequence(headers)
    copy = Copy(Path(os.environ.get("COPIES", "copies")) / repository)
    with ONE_AT_A_TIME:
        if not copy.belongs(watch, sequence):
            return "stale"
        if event == "sync_completed":
            same = copy.tree_sha256() == notification["tree_sha256"]
            return "the copy matches" if same else "the copy differs: ask for a re-sync"
        file = notification["file"]
        return copy.remove(file["path"], sequence) if event == "delete" else copy.keep(file, sequence)


class Copy:
    """One repository on disk. Files are completed and checked elsewhere before they are moved into `files`."""

    def __init__(self, folder: Path) -> None:
        self.files, self.sequences, self.incoming = folder / "files", folder / "sequences", folder / "incoming"
        self.epoch = folder / "epoch"
        self.make_folders()

    def make_folders(self) -> None:
        for each in (self.files, self.sequences, self.incoming):
            each.mkdir(parents=True, exist_ok=True)

    def belongs(self, watch: str, sequence: int) -> bool:
        """Return False for a late or repeated request of an earlier watch. Drop the copy if the repository was watched anew.

        Docora deletes nothing in a copy of an earlier watch, because it no longer knows what that copy holds. Only a verified
        request with another watch and a sequence above all others proves that there is a new one. This is on the disk before
        anything is deleted. If the receiver is killed in between, the next request finds `drop` and finishes it.
        """
        epoch = (
            json.loads(self.epoch.read_text()) if self.epoch.exists() else {"watch": "", "highest": 0, "drop": False}
        )
        if watch != epoch["watch"]:
            if sequence <= epoch["highest"]:
                return False
            epoch = {"watch": watch, "highest": sequence, "drop": epoch["watch"] != ""}
            self.write_epoch(epoch)
        if epoch["drop"]:
            for each in (self.files, self.sequences, self.incoming):
                shutil.rmtree(each)
            self.make_folders()
            self.write_epoch({**epoch, "drop": False})
        elif sequence > epoch["highest"]:
            self.write_epoch({**epoch, "highest": sequence}, flush=False)
        return True

    def write_epoch(self, epoch: dict, flush: bool = True) -> None:
        """Store it. With `flush`, it is on the disk when this returns, and would survive a power failure."""
        temporary = self.epoch.with_name("epoch.new")
        with temporary.open("w") as out:
            out.write(json.dumps(epoch))
            out.flush()
            if flush:
                os.fsync(out.fileno())
        temporary.replace(self.epoch)
        if flush and os.name != "nt":  # it cannot open folders
            folder = os.open(self.epoch.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def keep(self, file: dict, sequence: int) -> str:
        """`create` and `update`: the content becomes the file, whatever was there before."""
        target = self.target(file["path"])
        if self.is_stale(file["path"], sequence):
            return "stale"
        pieces = self.pieces(file)
        if pieces is None:
            return "more to come"
        temporary = self.incoming / uuid.uuid4().hex
        try:
            with temporary.open("wb") as out:
                digest, size = hashlib.sha256(), 0
                for piece in pieces:
                    out.write(piece)
                    digest.update(piece)
                    size += len(piece)
            if (digest.hexdigest(), size) != (file["sha"], file["size"]):
                raise Refused(422, "The content is not what sha and size say.")
            self.remember(file["path"], sequence)
            self.make_room(target)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self.incoming / name_of(file["path"]), ignore_errors=True)
        return "kept"

    def remove(self, path: str, sequence: int) -> str:
        """`delete`. That the file is not there is no error: then this is what was wanted."""
        target = self.target(path)
        if self.is_stale(path, sequence):
            return "stale"
        self.remember(path, sequence)
        shutil.rmtree(self.incoming / name_of(path), ignore_errors=True)
        if not target.is_file():
            return "absent"
        target.unlink()
        for folder in target.parents:  # git knows no empty folders
            if folder == self.files or any(folder.iterdir()):
                break
            folder.rmdir()
        return "removed"

    def target(self, path: str) -> Path:
        """Where a path belongs. Docora sends none that leads elsewhere; whoever writes files looks all the same."""
        if not is_safe(path):
            raise Refused(422, "The path leads out of the copy, or is no name for a file on this system.")
        return self.files / path

    def make_room(self, target: Path) -> None:
        """A file where a folder is needed gives way, and the other way round: what is sent now is what holds."""
        for folder in target.parents:
            if folder == self.files:
                break
            if folder.is_file():
                folder.unlink()
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)

    def is_stale(self, path: str, sequence: int) -> bool:
        """Whether a later notification of this path was here already. Lower, not equal: a repeated one has its number."""
        seen = self.sequences / name_of(path)
        return seen.exists() and sequence < int(seen.read_text())

    def remember(self, path: str, sequence: int) -> None:
        """Also of a deleted file: a late `create` must not bring it back."""
        temporary = self.incoming / uuid.uuid4().hex
        temporary.write_text(str(sequence))
        temporary.replace(self.sequences / name_of(path))

    def pieces(self, file: dict) -> "Iterable[bytes] | None":
        """The content, or None while chunks of it are still to come."""
        chunk = file.get("chunk")
        if chunk is None:
            content = file["content"]
            return [base64.b64decode(content) if file.get("content_encoding") == "base64" else content.encode()]
        if not re.fullmatch("[A-Za-z0-9-]{1,64}", chunk["id"]):
            raise Refused(422, "chunk.id is no name of a folder.")
        of_path = self.incoming / name_of(file["path"])
        if chunk["index"] == 0:
            shutil.rmtree(of_path, ignore_errors=True)  # an attempt before this one will never be completed
        of_attempt = of_path / chunk["id"]
        of_attempt.mkdir(parents=True, exist_ok=True)
        (of_attempt / str(int(chunk["index"]))).write_text(file["content"])
        if chunk["index"] < chunk["total"] - 1:
            return None
        found = [of_attempt / str(index) for index in range(chunk["total"])]
        if not all(piece.exists() for piece in found):
            raise Refused(409, "Chunks before this one are missing.")
        return decoded(found)

    def tree_sha256(self) -> str:
        """One hash for the whole copy: over `{sha}  {path}` of every file, a line each, in the order of the paths' bytes."""
        paths = {file.relative_to(self.files).as_posix(): file for file in self.files.rglob("*") if file.is_file()}
        digest = hashlib.sha256()
        for path in sorted(paths, key=str.encode):
            digest.update(f"{hashlib.sha256(paths[path].read_bytes()).hexdigest()}  {path}\n".encode())
        return digest.hexdigest()


def is_safe(path: str, windows: bool = os.name == "nt") -> bool:
    """Return whether a file at this path is inside the copy, and a file.

    On Windows, a colon leads to another drive or into a stream, `\\` is a `/`, `aux.c` is a device, and a dot or space at the
    end is dropped. Elsewhere these are ordinary names, so Docora sends them.
    """
    for part in path.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            return False
        if windows and (re.search(r'[\x01-\x1f\\:*?"<>|]|[. ]$', part) or DEVICE.fullmatch(part)):
            return False
    return True


def name_of(path: str) -> str:
    """A name for what is kept about a path: of any length, with any characters."""
    return hashlib.sha256(path.encode()).hexdigest()


def decoded(pieces: Iterable[Path]) -> Iterator[bytes]:
    """The bytes behind joined base64, a piece at a time. A piece may end anywhere; four characters are decoded together."""
    rest = ""
    for piece in pieces:
        text = rest + piece.read_text()
        whole = len(text) - len(text) % 4
        yield base64.b64decode(text[:whole])
        rest = text[whole:]


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Docora keeps its connections open
    wbufsize = -1  # head and body of an answer leave in one packet

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        if size > MAX_BODY_BYTES:
            self.close_connection = True  # the body stays unread
            return self.answer(413, "The body is too large.")
        body = self.rfile.read(size)
        if not verify(self.headers, body, os.environ["DOCORA_KEY"]):
            return self.answer(401, "The signature is wrong, or the request is old.")
        event, notification = self.path.rpartition("/")[2], json.loads(body)
        try:
            status, words = 200, handle(event, notification, self.headers)
        except Refused as refused:
            status, words = refused.status, str(refused)
        except OSError as error:
            status, words = 500, f"The disk says: {error.strerror}"
        except (KeyError, TypeError, ValueError) as error:
            status, words = 422, f"The notification cannot be read: {error!r}"
        logging.info("%s %r: %d %s", event, notification.get("file", {}).get("path", ""), status, words)
        return self.answer(status, words)

    def answer(self, status: int, words: str) -> None:
        content = words.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, *arguments: object) -> None:
        """`do_POST` says more."""


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    with ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver) as server:
        logging.info("http://127.0.0.1:%d", server.server_port)
        server.serve_forever()
