"""The connection to Redis: short time-outs, because Redis only wakes and counts, and nobody may wait for it."""

from functools import lru_cache

from django.conf import settings
from redis import Redis
from redis.exceptions import RedisError

__all__ = ["RedisError", "connection"]


@lru_cache(maxsize=1)
def connection() -> Redis:
    """One pooled client per process; redis-py opens its sockets anew after a fork."""
    return Redis.from_url(settings.REDIS_URL, socket_timeout=2.0, socket_connect_timeout=1.0)
