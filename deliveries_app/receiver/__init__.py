"""The reference client: receive Docora's notifications and keep a copy of every repository.

Read it before you write your own client. It needs only Python's standard library, so you can copy this directory as it
is. It runs where Docora does, on Linux; the samples of the webhook reference also run on Windows.

- `notification` is the contract: `verify` checks that a request comes from Docora, `parse` reads it.
- `storage` keeps the copy of one repository: it ignores stale notifications, assembles chunks and refuses hostile
  paths.
- `endpoint` combines the two and logs what it received.
- `server` is the HTTP server.
"""

from .endpoint import Receiver, Record
from .notification import KINDS, Chunk, Notification, Refused, parse, verify
from .server import Answer
from .storage import Copy, Outcome, tree_sha256
