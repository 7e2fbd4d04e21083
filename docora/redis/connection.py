"""The connection to Redis. Timeouts are short: Redis only wakes workers and counts, so nothing should wait for it."""

from functools import lru_cache

from django.conf import settings
from redis import Redis
from redis.exceptions import RedisError

__all__ = ["RedisError", "connection"]


@lru_cache(maxsize=1)
def connection() -> Redis:
    """Return the process's pooled client. redis-py opens new sockets after a fork."""
    return Redis.from_url(settings.REDIS_URL, socket_timeout=2.0, socket_connect_timeout=1.0)
