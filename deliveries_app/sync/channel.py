"""How an attempt reaches its app: what all of its requests have in common."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from deliveries_app.sync.lease import Lease
from deliveries_app.webhooks.client import info_of, post_signed
from deliveries_app.webhooks.keyring import Keyring
from deliveries_app.webhooks.payloads import Chunk, Envelope, RepositoryInfo, endpoint, webhook_id
from docora.http.client import HttpClient, Outcome


class Channel:
    """The app's endpoint, as one attempt on one watch uses it.

    `alive` is called while requests are awaited, about every second. It raises when the attempt has to stop.
    """

    def __init__(self, client: HttpClient, lease: Lease, alive: Callable[[], None]) -> None:
        self.client, self.lease, self.alive = client, lease, alive
        self.app = lease.watch.app
        self.keyring = Keyring(self.app)

    @cached_property
    def repository(self) -> RepositoryInfo:
        """The `repository` object of notifications. Raises `InvalidUrl` if an earlier version accepted the watch's URL."""
        return info_of(self.lease.watch)

    def url(self, event: str) -> str:
        return endpoint(self.app.base_url, event)

    def message_id(self, sequence: int, chunk: Chunk | None = None) -> str:
        return webhook_id(self.lease.watch.watch_id, sequence, chunk)

    def envelope(self, run_id: str, reason: str) -> Envelope:
        return Envelope(self.app.app_id, run_id, reason)

    def post(
        self,
        event: str,
        fields: Mapping[str, Any],
        sequence: int,
        envelope: Envelope,
        *,
        alive: Callable[[], None] | None = None,
        max_body: int = 4096,
    ) -> Outcome:
        """Send a notification that is not about one file, and wait for the outcome. Call `alive` instead of the attempt's.

        The caller has stored `sequence`. Nothing is sent if the lease is too old by then.
        """
        return post_signed(
            self.client,
            self.url(event),
            fields,
            self.message_id(sequence),
            sequence,
            envelope,
            self.keyring,
            alive or self.alive,
            self.lease.can_send,
            max_body,
        )
