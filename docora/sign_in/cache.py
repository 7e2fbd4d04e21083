"""The cache of rate limits and used codes: JSON in Redis, or in this process's memory while Redis is down.

Django's own Redis cache pickles, so that anyone who can write to Redis could run code. Without Redis, each web process
counts on its own: limits become weaker, and a code can be used once per process, but people can sign in.

A Redis whose disk is full refuses writes, but still answers reads. So what is read has to come from where it was written.
"""

import json
import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate

from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache
from redis.exceptions import TimeoutError as RedisTimeoutError

from docora.redis.connection import RedisError

logger = logging.getLogger(__name__)

_SECONDS_AFTER_TIMEOUT = 10.0
"""For how long Redis is not tried after it did not respond. A sign-in uses the cache five times, and would wait each time."""


class JsonSerializer:
    def dumps(self, value: object) -> bytes | int:
        return value if type(value) is int else json.dumps(value).encode()  # Redis can only increment plain numbers

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


def _or_in_memory[**P, R](
    method: Callable[Concatenate["SharedCache", P], R],
) -> Callable[Concatenate["SharedCache", P], R]:
    @wraps(method)
    def call(self: "SharedCache", /, *args: P.args, **kwargs: P.kwargs) -> R:
        name = method.__name__
        if name == "add":  # allauth begins with it: it locks what it then reads and writes
            self.uses_memory = time.monotonic() < SharedCache.next_try
        if not self.uses_memory:
            try:
                return method(self, *args, **kwargs)
            except RedisError as error:
                logger.warning("cache_in_memory", extra={"cause": str(error)})
                self.uses_memory = True
                if isinstance(error, RedisTimeoutError):
                    SharedCache.next_try = time.monotonic() + _SECONDS_AFTER_TIMEOUT
        fallback: R = getattr(self.memory, name)(*args, **kwargs)
        return fallback

    return call


class SharedCache(RedisCache):
    """Django's Redis cache. The methods that allauth uses fall back to memory. Each thread has its own instance."""

    uses_memory = False
    next_try = 0.0
    """When to try Redis again (monotonic time), for all threads."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        self.memory = LocMemCache("sign_in", {})

    add = _or_in_memory(RedisCache.add)
    get = _or_in_memory(RedisCache.get)
    set = _or_in_memory(RedisCache.set)
    delete = _or_in_memory(RedisCache.delete)
