"""What is sent, and why it was not delivered: the two types that the modules of a sync pass to each other."""

from dataclasses import dataclass, field
from typing import Self

from deliveries_app.models import App, root_causes
from deliveries_app.models.root_causes import RootCause, SyncFailure
from deliveries_app.planning.plan import Change
from deliveries_app.sync.lease import HOLD_AFTER_TIMEOUT
from deliveries_app.webhooks.client import describe_outcome, timed_out
from deliveries_app.webhooks.keyring import response_texts
from docora.http.client import Outcome

BLOCKED = "blocked"


@dataclass
class Notification:
    """A change whose content has been read, with the SHA-256 and size in bytes of what is sent, and its sequence.

    `content` is None for deletes and for files that are too large to be kept in memory. `remark` says what is special about
    the content. `waits` counts how often the notification was sent again in this run.
    """

    change: Change
    source_key: str
    sha: str
    size: int
    content: bytes | None
    remark: str = ""
    waits: int = 0
    sequence: int = field(init=False)

    def __post_init__(self) -> None:
        self.sequence = self.change.sequence or 0  # `Recorder.commit` replaces 0 with a new number

    @property
    def is_held(self) -> bool:
        """Whether the app already holds this content, so that nothing is sent."""
        return self.change.compare and self.sha == self.change.sha


def _telling_headers(outcome: Outcome) -> bytes:
    """Return the headers of a response that say where to send the request instead, or which credentials are missing."""
    found = {"Location": outcome.location, "WWW-Authenticate": outcome.headers.get("www-authenticate", "")}
    return "".join(f"{name}: {value}\n" for name, value in found.items() if value).encode()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a notification was not delivered in this run.

    Its path must not be sent again for `hold_seconds`. `lost_connection`: the connection was lost after the request was sent,
    so the app may still be processing it.
    """

    cause: str
    message: str
    status: int | None = None
    body: bytes = b""
    hold_seconds: float = 0.0
    lost_connection: bool = False

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Return the failure of a request that the app did not accept."""
        hold = HOLD_AFTER_TIMEOUT if timed_out(outcome) else 0.0
        # Whatever the cause: libcurl repeats a request whose kept-alive connection was lost, and may fail to connect again.
        lost = outcome.cause is not None and outcome.reached and not hold
        message = describe_outcome(outcome)
        return cls(
            str(outcome.cause or "http"), message, outcome.status, _telling_headers(outcome) + outcome.body, hold, lost
        )

    @property
    def may_be_under_way(self) -> bool:
        """Whether the app may still be processing the request."""
        return self.hold_seconds > 0 or self.lost_connection

    @property
    def root(self) -> RootCause:
        return root_causes.of_delivery(self.cause, self.status)

    @property
    def counted_as(self) -> str:
        """The label of this failure in the metrics: the root cause, or `BLOCKED` for a path that waits for another one."""
        return BLOCKED if self.cause == BLOCKED else self.root.value

    def of_sync(self, app: App, message: str) -> SyncFailure:
        """Return the failure of a sync that ends because of this one."""
        return SyncFailure(message, self.cause, self.root, self.status, response_texts(app, [self.body])[0])
