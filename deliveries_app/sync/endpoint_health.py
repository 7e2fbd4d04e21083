"""Find out whether an app's endpoint is down, when notifications fail as if it were (`engine.md` §7).

Failing files alone don't prove it: a proxy may answer 502 for some files only, and a client may hang on one. So Docora
sends a ping before it puts all of the app's repositories on hold.
"""

import logging
import time
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db.models import Exists, OuterRef, Q

from deliveries_app.models import App, AppRepository, DeliveryFailure, FailureKind
from deliveries_app.models.root_causes import RootCause
from deliveries_app.sync.channel import Channel
from deliveries_app.webhooks import endpoint_stats
from deliveries_app.webhooks.client import describe_outcome, post_ping
from docora.http.client import Outcome
from docora.http.messages import GATEWAY_ERRORS
from docora.redis.connection import RedisError, connection

logger = logging.getLogger(__name__)

PING_SECONDS = 60
"""How long all runs use the result of a ping. A run sends one regardless if the endpoint was down or answered 404 to a delete."""
_PREFIX = "docora:endpoint:"
_ENDPOINT_CAUSES = (RootCause.DNS, RootCause.TLS, RootCause.CONNECTION, RootCause.TIMEOUT, RootCause.ADDRESS)
_POLL_SECONDS = 0.2
_LONGEST_PING = 40  # seconds


class Health(StrEnum):
    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class EndpointHealth:
    """Finds out whether an attempt's app can be reached. No other request may be in flight meanwhile."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._app = channel, channel.app
        self._key = f"{_PREFIX}{self._app.app_id}:{self._app.base_url}"
        self.answer: Outcome | None = None
        """The outcome of the last ping that this run has sent."""

    def ask(self, failing_since: datetime) -> Health:
        """Return `UP` if the endpoint has acknowledged any file since `failing_since`, otherwise the result of a ping."""
        if self.has_acknowledged_since(failing_since):
            return Health.UP
        known = self._known()
        return self.ping() if known is None else known

    def has_acknowledged_since(self, moment: datetime) -> bool:
        """Return whether the endpoint has acknowledged any file of any watch since then, as far as that is recorded."""
        acknowledged_at = endpoint_stats.last_acknowledged(self._app)
        return acknowledged_at is not None and acknowledged_at >= moment

    def ping(self) -> Health:
        """Send a ping now. 2xx proves that the endpoint works. No response or a gateway error proves that it is down.

        Any other response proves nothing, because existing clients have no `/ping`. 410 does not pause the app here.
        """
        outcome = post_ping(self._channel.client, self._app, self._channel.keyring, self._channel.alive)
        health, self.answer = _health_of(outcome), outcome
        fields = {"app": self._app.app_id, "health": health.value, "answer": describe_outcome(outcome)}
        logger.info("endpoint_pinged", extra=fields)
        try:
            connection().set(self._key, health.value, ex=PING_SECONDS)
        except RedisError:
            logger.debug("endpoint_health_not_shared")
        return health

    def _known(self) -> Health | None:
        """Return the result of a ping within the last `PING_SECONDS`, or None if this run has to send one.

        If another run is sending a ping, wait for its result.
        """
        ends_at = time.monotonic() + _LONGEST_PING
        try:
            while not connection().set(self._key, "", nx=True, ex=_LONGEST_PING):
                known: Any = connection().get(self._key)
                if known:
                    return Health(known.decode())
                if time.monotonic() > ends_at:
                    return Health.UNKNOWN
                self._channel.alive()
                time.sleep(_POLL_SECONDS)
        except RedisError:
            logger.debug("endpoint_health_not_shared")
        return None


def record_up(app: App) -> None:
    """Record that the endpoint works, so that all repositories of an app that was down continue."""
    if app.down_count:
        App.objects.filter(pk=app.pk, down_count__gt=0).update(down_count=0, cooldown_until=None)
        app.down_count = 0


def failing_watches(app: App, *, except_pk: int) -> int:
    """Return how many other watches of the app failed as if the endpoint were down since it last acknowledged a file."""
    gateway = Q(root_cause=RootCause.SERVER_ERROR, last_status_code__in=GATEWAY_ERRORS)
    watches = AppRepository.objects.failing().filter(Q(root_cause__in=_ENDPOINT_CAUSES) | gateway, app=app)
    acknowledged_at = endpoint_stats.last_acknowledged(app)
    if acknowledged_at is not None:
        failures = DeliveryFailure.objects.filter(kind=FailureKind.FAILED, last_at__gt=acknowledged_at)
        watches = watches.filter(Exists(failures.filter(watch=OuterRef("pk"))))
    return watches.exclude(pk=except_pk).count()


def _health_of(outcome: Outcome) -> Health:
    if outcome.ok:
        return Health.UP
    return Health.DOWN if outcome.cause or outcome.status in GATEWAY_ERRORS else Health.UNKNOWN
