"""The reference client: what an app does with the notifications that Docora sends it.

Read it when you write a client of your own. The folder needs nothing but Python's standard library and may be copied
as it is.

- `notification` is the contract: is this request really from Docora (`verify`), and what does it say (`parse`)?
- `storage` is the copy of one repository: what to ignore, how chunks become a file, how a hostile path is refused.
- `endpoint` puts the two together, and remembers what it was sent.
- `server` is the HTTP around it.
"""

from .endpoint import Receiver, Record
from .notification import KINDS, Chunk, Notification, Refused, parse, verify
from .server import Answer
from .storage import Copy, Outcome, tree_sha256

__all__ = [
    "KINDS",
    "Answer",
    "Chunk",
    "Copy",
    "Notification",
    "Outcome",
    "Receiver",
    "Record",
    "Refused",
    "parse",
    "tree_sha256",
    "verify",
]
