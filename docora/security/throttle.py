"""Slow down guessing: count failures per client address in Redis. Fails open without Redis.

Only failures are counted, and only failures are rejected: a valid secret is always accepted, even after many wrong ones
from the same address. Clients may share an address (a proxy, a cluster behind NAT) and could otherwise lock each other out.
That is safe because secrets are long: Docora's own have 256 random bits, and METRICS_TOKEN has at least 16 characters. The limit
only saves work. If the check itself is expensive, callers skip it after too many failures (`seconds_to_wait`).
"""

import ipaddress
import logging

from docora.redis.connection import RedisError, connection

logger = logging.getLogger(__name__)

FAILURES = 20
SECONDS = 60


def count_failure(kind: str, address: str) -> int | None:
    """Count one failure of `kind` from `address`.

    Return the seconds to wait after more than `FAILURES` failures within `SECONDS`, otherwise None.
    """
    return _seconds_left(kind, address, FAILURES + 1, failed=True)


def seconds_to_wait(kind: str, address: str) -> int | None:
    """Return the seconds to wait after `FAILURES` failures of `kind` from `address`, or None if there is no need to wait."""
    return _seconds_left(kind, address, FAILURES, failed=False)


def _seconds_left(kind: str, address: str, limit: int, *, failed: bool) -> int | None:
    key = f"docora:failures:{kind}:{source_of(address)}"
    try:
        with connection().pipeline(transaction=True) as pipeline:
            if failed:
                pipeline.incr(key)
                pipeline.expire(key, SECONDS, nx=True)
            pipeline.get(key)
            pipeline.ttl(key)
            *_, count, left = pipeline.execute()
    except RedisError as error:
        if failed:
            logger.warning("failures_not_counted", extra={"cause": str(error)})
        return None
    return max(1, int(left)) if int(count or 0) >= limit else None


def source_of(address: str) -> str:
    """Return the address that failures are counted under, or "unknown" for a Unix socket.

    For IPv6 this is the /64 network, because one machine usually controls all of it.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
