"""Counting failures of one client, over Redis, so that guessing becomes slow. Without Redis nobody is held up.

Only failures are counted and only failures are refused. Whoever has the right secret gets through however many wrong
ones came from the same address: others may share it (a proxy, a cluster behind one NAT), and could otherwise lock a
client app out. Nothing is lost by that, for secrets are 256 random bits: what the limit saves is work and log lines.
Where finding out that a secret is right is much work itself, that work is what counts, and who asks for it waits
(`seconds_to_wait`).
"""

import ipaddress
import logging

from docora.redis.connection import RedisError, connection

logger = logging.getLogger(__name__)

FAILURES = 20
SECONDS = 60


def count_failure(kind: str, address: str) -> int | None:
    """Note one failure of `kind` from `address`. Seconds to wait when there were more than `FAILURES` of them within
    `SECONDS`, else None."""
    key = _key(kind, address)
    try:
        with connection().pipeline(transaction=True) as pipeline:
            pipeline.incr(key)
            pipeline.expire(key, SECONDS, nx=True)
            pipeline.ttl(key)
            count, _, left = pipeline.execute()
    except (RedisError, OSError) as error:
        logger.warning("not_throttled", extra={"cause": str(error)})
        return None
    return max(1, int(left)) if count > FAILURES else None


def seconds_to_wait(kind: str, address: str) -> int | None:
    """Before the next try, where there were `FAILURES` failures of `kind` from `address` already; None: try."""
    key = _key(kind, address)
    try:
        with connection().pipeline(transaction=True) as pipeline:
            pipeline.get(key)
            pipeline.ttl(key)
            count, left = pipeline.execute()
    except (RedisError, OSError):
        return None
    return max(1, int(left)) if count is not None and int(count) >= FAILURES else None


def _key(kind: str, address: str) -> str:
    return f"docora:failures:{kind}:{source_of(address) or 'unknown'}"


def source_of(address: str) -> str | None:
    """Whom an address stands for, as an address: IPv6 for its whole network of 64 bits, all of which is at the hands of
    one machine. None if it is no address (a Unix socket)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
