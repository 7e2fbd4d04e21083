"""Send notifications as Docora does, signed by a separate implementation of the contract."""

import base64
import hashlib
import hmac
import http.client
import json
import time

from deliveries_app.receiver import Receiver

KEY = "a key that the two share"
STANDARD_KEY = "whsec_" + base64.b64encode(b"twenty-four bytes of key").decode()
APP = "app_0123456789abcdef01234567"
WATCH = "0123456789abcdef"
REPOSITORY = {
    "repository_id": "repo_1",
    "github_url": "https://github.com/acme/widgets",
    "owner": "acme",
    "name": "widgets",
}


def signed(body: bytes, key=KEY, *, app=APP, watch=WATCH, sequence=1, at=None) -> dict[str, str]:
    """Return the headers that Docora would send."""
    webhook_id = f"msg_{watch}_{sequence}"
    timestamp = str(int(time.time()) if at is None else at)
    standard_key = base64.b64decode(key[6:]) if key.startswith("whsec_") else key.encode()
    standard = hmac.digest(standard_key, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "Content-Type": "application/json",
        "X-Docora-App-Id": app,
        "X-Docora-Timestamp": timestamp,
        "X-Docora-Signature": "sha256=" + hmac.digest(key.encode(), timestamp.encode() + b"." + body, "sha256").hex(),
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(standard).decode(),
        "X-Docora-Run-Id": "run_1",
        "X-Docora-Reason": "change",
        "X-Docora-Sequence": str(sequence),
    }


class Sender:
    """One persistent connection to a receiver."""

    def __init__(self, receiver: Receiver) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=10)

    def post(self, kind: str, body: dict | bytes, headers: dict[str, str] | None = None, **signing) -> int:
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        self.connection.request("POST", f"/{kind}", content, headers or signed(content, **signing))
        response = self.connection.getresponse()
        self.answer = json.loads(response.read())
        self.headers = response.headers
        return response.status

    def send(self, path: str, content: bytes | str, kind="create", **signing) -> int:
        """Create or update a whole file: bytes as base64, str as text."""
        raw = content.encode() if isinstance(content, str) else content
        file = {"path": path, "sha": sha(raw), "size": len(raw)}
        if isinstance(content, str):
            file["content"] = content
        else:
            file |= {"content": base64.b64encode(content).decode(), "content_encoding": "base64"}
        return self.post(kind, about(file, kind), **signing)

    def send_chunk(self, path: str, content: bytes, piece: str, index: int, total: int, id="c1", **signing) -> int:
        file = {"path": path, "sha": sha(content), "size": len(content), "content": piece}
        file |= {"content_encoding": "base64", "chunk": {"id": id, "index": index, "total": total}}
        return self.post("create", about(file), **signing)

    def delete(self, path: str, **signing) -> int:
        return self.post("delete", about({"path": path, "sha": "0" * 64}), **signing)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def about(file: dict, kind="create") -> dict:
    previous = {"previous_sha": "0" * 64} if kind == "update" else {}
    return {
        "repository": REPOSITORY,
        "file": file,
        **previous,
        "commit_sha": "c" * 40,
        "timestamp": "2026-11-24T12:00:00.000Z",
    }


def held(receiver: Receiver, app=APP) -> dict[str, bytes]:
    """Return path → content of the copy on disk."""
    root = receiver.directory / app / REPOSITORY["repository_id"]
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
