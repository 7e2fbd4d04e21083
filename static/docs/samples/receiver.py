"""A complete client app for Docora: verify every notification and keep a copy of every repository on disk.

Needs only Python 3.9 or newer.

    DOCORA_KEY='your signing key' PORT=9000 COPIES=./copies python3 receiver.py

Each repository has its own folder in COPIES. Everything in it survives a restart:

- `files`: the copy
- `sequences`: the highest sequence received for each path
- `incoming`: files that are not complete yet
- `epoch`: the watch the copy was made from

Run only one process per COPIES folder.
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

TOLERANCE_SECONDS = 300  # reject older requests, which may be replays
MAX_BODY_BYTES = 8 * 1024 * 1024  # larger files arrive in chunks
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE | re.DOTALL)
UNFINISHED_SECONDS = 86_400  # Docora has started over long before
ONE_AT_A_TIME = threading.Lock()  # Docora sends several files at once, but never two notifications for one path


class Refused(Exception):
    """Respond with this status instead of 2xx. Docora sends the notification again and shows `text` with the failure."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def verify(headers: Mapping[str, str], body: bytes, key: str) -> bool:
    """Return whether the request was signed with `key` within the last five minutes. Docora signs every request twice.

    X-Docora-Signature covers the timestamp and the body. webhook-signature also covers webhook-id. During a key rotation,
    webhook-signature holds one signature per key.
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
    """Compare in constant time. The duration of `==` would reveal where the values differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


def watch_and_sequence(headers: Mapping[str, str]) -> "tuple[str, int]":
    """Return the watch and the sequence from the signed webhook-id. X-Docora-Sequence is not signed, so don't use it.

    Refuse a sequence far in the future: your app would ignore every later notification as out of date.
    """
    parts = re.fullmatch("msg_([A-Za-z0-9]{1,64})_([0-9]{1,16})(_[A-Za-z0-9-]+_[0-9]+)?", headers.get("webhook-id", ""))
    if not parts or int(parts[2]) > min(2**53 - 1, (time.time() + 86_400) * 1_000_000):
        raise Refused(422, "webhook-id has no watch and sequence, or the sequence is more than a day ahead.")
    return parts[1], int(parts[2])


def check_event(event: str, notification: dict) -> None:
    """Refuse a body that doesn't fit the event in the URL. The URL is not signed, so a replay may have changed it."""
    file = notification.get("file")
    if event not in ("create", "update", "delete"):
        fits = notification.get("event") == event
    else:
        fits = isinstance(file, dict) and ("content" in file) == (event != "delete")
    if not fits:
        raise Refused(422, f"This is not the body of a {event} event.")


def handle(event: str, notification: dict, headers: Mapping[str, str]) -> "str | dict":
    """Process a verified notification and return what was done. Respond with 2xx only after this: it means "stored".

    For `verify`, return the JSON to respond with.
    """
    if event not in ("ping", "create", "update", "delete", "sync_failed", "sync_completed", "verify"):
        raise Refused(404, "Not found.")
    check_event(event, notification)
    if event == "ping":
        return "pong"
    if event == "sync_failed":
        return notification["error"]["message"]
    repository = notification["repository"]["repository_id"]
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", repository):
        raise Refused(422, "repository_id can't be used as a folder name.")
    watch, sequence = watch_and_sequence(headers)
    copy = Copy(Path(os.environ.get("COPIES", "copies")) / repository)
    with ONE_AT_A_TIME:
        belongs = copy.belongs(watch, sequence)
        if event == "verify":
            if not belongs or sequence < copy.highest():
                raise Refused(409, "A later notification has arrived.")  # so this request may be a replay
            return copy.page(notification["tree_sha256"], notification["after"], notification["limit"])
        if not belongs:
            return "stale"
        if event == "sync_completed":
            same = copy.tree_sha256() == notification["tree_sha256"]
            return "the copy matches" if same else "the copy differs: ask for a re-sync"
        file = notification["file"]
        return copy.remove(file["path"], sequence) if event == "delete" else copy.keep(file, sequence)


class Copy:
    """One repository on disk. A file is assembled and checked in `incoming` before it is moved into `files`."""

    def __init__(self, folder: Path) -> None:
        self.files, self.sequences, self.incoming = folder / "files", folder / "sequences", folder / "incoming"
        self.epoch = folder / "epoch"
        self.make_folders()

    def make_folders(self) -> None:
        for each in (self.files, self.sequences, self.incoming):
            each.mkdir(parents=True, exist_ok=True)

    def belongs(self, watch: str, sequence: int) -> bool:
        """Return whether the notification belongs to the current watch. Drop the copy if a new watch has begun.

        After your app stops watching a repository, Docora no longer knows what the copy holds and sends no deletes for it. So
        a copy from an earlier watch must go. Only a verified notification with another watch and a sequence above all others
        proves that a new watch has begun. Late and replayed notifications of an earlier watch have lower sequences.

        `drop` is stored before anything is deleted. If the receiver is killed in between, the next notification finds `drop`
        and finishes the deletion.
        """
        epoch = self.read_epoch()
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

    def highest(self) -> int:
        """Return the highest sequence received for the repository."""
        return self.read_epoch()["highest"]

    def read_epoch(self) -> dict:
        """Return the stored epoch. After a power failure the file may be empty, which is the same as none."""
        try:
            return json.loads(self.epoch.read_text())
        except (OSError, ValueError):
            return {"watch": "", "highest": 0, "drop": False}

    def write_epoch(self, epoch: dict, flush: bool = True) -> None:
        """Store the epoch. With `flush`, it is on disk when this returns and survives a power failure."""
        temporary = self.epoch.with_name("epoch.new")
        with temporary.open("w") as out:
            out.write(json.dumps(epoch))
            out.flush()
            if flush:
                os.fsync(out.fileno())
        temporary.replace(self.epoch)
        if flush and os.name != "nt":  # Windows can't open folders
            folder = os.open(self.epoch.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def keep(self, file: dict, sequence: int) -> str:
        """Process a `create` or `update`: write the file, whatever was there before."""
        target = self.target(file["path"])
        if self.is_stale(file["path"], sequence):
            return "stale"
        pieces = self.pieces(file)
        if pieces is None:
            return "waiting for more chunks"
        temporary = self.incoming / uuid.uuid4().hex
        try:
            with temporary.open("wb") as out:
                digest, size = hashlib.sha256(), 0
                for piece in pieces:
                    out.write(piece)
                    digest.update(piece)
                    size += len(piece)
            if (digest.hexdigest(), size) != (file["sha"], file["size"]):
                raise Refused(422, "The content doesn't match sha and size.")
            self.remember(file["path"], sequence)
            self.make_room(target)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self.incoming / name_of(file["path"]), ignore_errors=True)
        return "kept"

    def remove(self, path: str, sequence: int) -> str:
        """Process a `delete`. A file that doesn't exist is not an error."""
        target = self.target(path)
        if self.is_stale(path, sequence):
            return "stale"
        self.remember(path, sequence)
        shutil.rmtree(self.incoming / name_of(path), ignore_errors=True)
        if not target.is_file():
            return "absent"
        target.unlink()
        for folder in target.parents:  # git has no empty folders
            if folder == self.files or any(folder.iterdir()):
                break
            folder.rmdir()
        return "removed"

    def target(self, path: str) -> Path:
        """Return where to write a path. Docora sends no path that leads outside the copy; check anyway."""
        if not is_safe(path):
            raise Refused(422, "The path leads outside the copy or isn't a valid file name on this system.")
        return self.files / path

    def make_room(self, target: Path) -> None:
        """Remove a file where a folder is needed, or a folder where the file goes. The newest notification wins."""
        for folder in target.parents:
            if folder == self.files:
                break
            if folder.is_file():
                folder.unlink()
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)

    def is_stale(self, path: str, sequence: int) -> bool:
        """Return whether a later notification for this path has been processed. A retry has the same sequence."""
        try:
            return sequence < int((self.sequences / name_of(path)).read_text())
        except (OSError, ValueError):  # there is none, or it was lost in a power failure
            return False

    def remember(self, path: str, sequence: int) -> None:
        """Store the path's sequence. Keep it for deleted files too, so that a late `create` doesn't bring them back."""
        temporary = self.incoming / uuid.uuid4().hex
        temporary.write_text(str(sequence))
        temporary.replace(self.sequences / name_of(path))

    def pieces(self, file: dict) -> "Iterable[bytes] | None":
        """Return the content, or None while chunks are missing."""
        chunk = file.get("chunk")
        if chunk is None:
            content = file["content"]
            return [base64.b64decode(content) if file.get("content_encoding") == "base64" else content.encode()]
        if not re.fullmatch("[A-Za-z0-9-]{1,64}", chunk["id"]):
            raise Refused(422, "chunk.id can't be used as a folder name.")
        of_path = self.incoming / name_of(file["path"])
        if chunk["index"] == 0:
            shutil.rmtree(of_path, ignore_errors=True)  # an earlier attempt will never be completed
        of_attempt = of_path / chunk["id"]
        of_attempt.mkdir(parents=True, exist_ok=True)
        (of_attempt / str(int(chunk["index"]))).write_text(file["content"])
        if chunk["index"] < chunk["total"] - 1:
            return None
        found = [of_attempt / str(index) for index in range(chunk["total"])]
        if not all(piece.exists() for piece in found):
            raise Refused(409, "Earlier chunks are missing.")
        return decoded(found)

    def paths(self) -> "list[str]":
        """Return the paths of all files, sorted by their bytes."""
        found = (file.relative_to(self.files).as_posix() for file in self.files.rglob("*") if file.is_file())
        return sorted(found, key=str.encode)

    def sha(self, path: str) -> str:
        return hashlib.sha256((self.files / path).read_bytes()).hexdigest()

    def tree_sha256(self) -> str:
        """Return one hash for the whole copy: SHA-256 over the lines `{sha}  {path}`, sorted by the bytes of the paths."""
        digest = hashlib.sha256()
        for path in self.paths():
            digest.update(f"{self.sha(path)}  {path}\n".encode())
        return digest.hexdigest()

    def page(self, tree_sha256: str, after: str, limit: int) -> dict:
        """Process a `verify`: return the hash if the whole copy matches it, otherwise the files after `after`.

        This reads the files from disk, so it notices what was changed or lost there. If your app has too many files to read
        within 30 seconds, store each `sha` with its path.
        """
        if not after and self.tree_sha256() == tree_sha256:
            return {"tree_sha256": tree_sha256}
        later = [path for path in self.paths() if path.encode() > after.encode()]
        files = [{"path": path, "sha": self.sha(path)} for path in later[:limit]]
        return {"files": files, "next": later[limit - 1] if len(later) > limit else None}


def is_safe(path: str, windows: bool = os.name == "nt") -> bool:
    """Return whether the path leads to a file inside the copy.

    On Windows, a colon leads to another drive or a stream, `\\` is a separator, `aux.c` is a device, and a trailing dot or
    space is dropped. Elsewhere these are ordinary names, so Docora sends them.
    """
    for part in path.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            return False
        if windows and (re.search(r'[\x01-\x1f\\:*?"<>|]|[. ]$', part) or DEVICE.fullmatch(part)):
            return False
    return True


def name_of(path: str) -> str:
    """Return a file name for data about a path, which can have any length and any characters."""
    return hashlib.sha256(path.encode()).hexdigest()


def decoded(pieces: Iterable[Path]) -> Iterator[bytes]:
    """Decode the joined base64 piece by piece, four characters at a time. A piece can end anywhere."""
    rest = ""
    for piece in pieces:
        text = rest + piece.read_text()
        whole = len(text) - len(text) % 4
        yield base64.b64decode(text[:whole])
        rest = text[whole:]


def clear_unfinished(copies: Path) -> None:
    """Delete what an earlier process left in `incoming`: temporary files, and uploads without a new chunk for a day.

    More recent uploads stay, because Docora may send their next chunk.
    """
    for left in copies.glob("*/incoming/*"):
        if left.is_file():
            left.unlink()
        elif max(each.stat().st_mtime for each in (left, *left.iterdir())) < time.time() - UNFINISHED_SECONDS:
            shutil.rmtree(left)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Docora reuses connections
    wbufsize = -1  # send headers and body in one packet

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]{1,12}", size) or int(size) > MAX_BODY_BYTES:  # read(-1) would never end
            self.close_connection = True  # the body has not been read
            return self.answer(413, "The body is too large.")
        body = self.rfile.read(int(size))
        if not verify(self.headers, body, os.environ["DOCORA_KEY"]):
            text = "The signature is wrong, or the request is too old."
            logging.info("401 %s", text)
            return self.answer(401, text)
        event, path = self.path.rpartition("/")[2], None
        try:
            notification = json.loads(body)
            path = notification.get("file", {}).get("path")
            result = handle(event, notification, self.headers)
            if isinstance(result, dict):
                logging.info("%s: 200 %d files listed", event, len(result.get("files", [])))
                return self.answer(200, json.dumps(result), "application/json")
            status, text = 200, result
        except Refused as refused:
            status, text = refused.status, str(refused)
        except OSError as error:
            status, text = 500, f"The file can't be stored: {error.strerror}"
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            status, text = 422, f"The notification is malformed: {error!r}"
        logging.info("%s: %d %s", event if path is None else f"{event} {path!r}", status, text)
        return self.answer(status, text)

    def answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, *arguments: object) -> None:
        """Log nothing here: `do_POST` logs more."""


if __name__ == "__main__":
    if not os.environ.get("DOCORA_KEY"):
        raise SystemExit("Set DOCORA_KEY to the signing key of your app.")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    clear_unfinished(Path(os.environ.get("COPIES", "copies")))
    with ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver) as server:
        logging.info("http://127.0.0.1:%d", server.server_port)
        server.serve_forever()
