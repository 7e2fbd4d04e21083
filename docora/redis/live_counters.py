"""Live counters in Redis hashes, polled by the progress bars.

The counters are a cache of database rows. Only code that writes the rows sets counters (`start`, `seed`), advances them, and
removes them once the end is committed. If counters are missing, `read` returns None, and the caller counts the rows. No
function here raises when Redis is down.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence

from docora.redis.connection import RedisError, connection

logger = logging.getLogger(__name__)

TTL_SECONDS = 24 * 3600
_PREFIX = "docora:progress:"
_LOG_INTERVAL_SECONDS = 60.0
_logged_at: float | None = None

# Advance only a counter that exists: after a flush, HINCRBY would create one that starts at zero.
_ADVANCE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""

# Keep existing counters: they may be newer than the rows that the caller has read.
_SEED = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 2 then return end
for index = 1, 2 do
  redis.call('DEL', KEYS[index])
  for name, value in pairs(cjson.decode(ARGV[index])) do redis.call('HSET', KEYS[index], name, value) end
  redis.call('EXPIRE', KEYS[index], ARGV[3])
end
"""

# Several writers share one sum. Each replaces its own part, so writing the same part twice counts once.
_PUT = """
if redis.call('EXISTS', KEYS[1], KEYS[2]) < 2 then return 0 end
local before, part = cjson.decode(redis.call('HGET', KEYS[2], ARGV[1]) or '{}'), cjson.decode(ARGV[2])
if before.completed == 1 and part.completed ~= 1 then return 1 end
for name, value in pairs(part) do
  if name == 'started' then
    local first = tonumber(redis.call('HGET', KEYS[1], name) or '0')
    if value > 0 and (first == 0 or value < first) then redis.call('HSET', KEYS[1], name, ARGV[3]) end
  elseif value ~= (before[name] or 0) then
    redis.call('HINCRBY', KEYS[1], name, string.format('%.0f', value - (before[name] or 0)))
  end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
"""


def start(key: str, counts: Mapping[str, int]) -> None:
    """Set the counters of `key`, replacing existing ones."""
    try:
        with connection().pipeline(transaction=True) as pipeline:
            pipeline.delete(_PREFIX + key)
            pipeline.hset(_PREFIX + key, mapping={name: str(value) for name, value in counts.items()})
            pipeline.expire(_PREFIX + key, TTL_SECONDS)
            pipeline.execute()
    except RedisError as error:
        _log_failure(key, error)


def seed(key: str, counts: Mapping[str, int], parts: Mapping[str, Mapping[str, int]]) -> None:
    """Set the counters of `key`, which are the sum of `parts`, unless they exist."""
    hashes = (
        {name: str(value) for name, value in counts.items()},
        {name: json.dumps(part) for name, part in parts.items()},
    )
    try:
        connection().eval(_SEED, 2, _PREFIX + key, _parts_of(key), *map(json.dumps, hashes), TTL_SECONDS)
    except RedisError as error:
        _log_failure(key, error)


def advance(key: str, **deltas: int) -> bool:
    """Add to existing counters. If they are missing or Redis is down, return False: then `start` them from the rows."""
    arguments = [part for name, delta in deltas.items() if delta for part in (name, delta)]
    if not arguments:
        return True
    try:
        return bool(connection().eval(_ADVANCE, 1, _PREFIX + key, *arguments))
    except RedisError as error:
        _log_failure(key, error)
        return False


def put(key: str, name: str, part: Mapping[str, int]) -> bool:
    """Replace the part `name` of a sum.

    Numbers are added up, except for `started`: the earliest one is kept. A `completed` part is final, so later parts that
    are not completed are ignored.

    Return False if the counters are missing: then `seed` them from the rows and put the part again. Return True if Redis
    is down, because there is nothing to seed.
    """
    try:
        arguments = (name, json.dumps(part), part.get("started", 0))
        return bool(connection().eval(_PUT, 2, _PREFIX + key, _parts_of(key), *arguments))
    except RedisError as error:
        _log_failure(key, error)
        return True


def read(keys: Sequence[str]) -> list[dict[str, int] | None]:
    """Return the counters of several keys in one round trip, with None for each missing one."""
    if not keys:
        return []
    try:
        with connection().pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(_PREFIX + key)
            answers = pipeline.execute()
    except RedisError:
        return [None] * len(keys)
    return [{name.decode(): int(value) for name, value in answer.items()} or None for answer in answers]


def finish(*keys: str) -> None:
    """Delete the counters. Call it after the commit that makes the numbers in the rows final."""
    if not keys:
        return
    try:
        connection().delete(*(_PREFIX + key for key in keys), *(_parts_of(key) for key in keys))
    except RedisError:
        logger.warning("progress_not_deleted", extra={"key": keys[0], "keys": len(keys)})


def _log_failure(key: str, error: RedisError) -> None:
    """Log at most once a minute: a running sync updates its counters several times a second."""
    global _logged_at
    now = time.monotonic()
    if _logged_at is None or now - _logged_at >= _LOG_INTERVAL_SECONDS:
        _logged_at = now
        logger.warning("progress_not_updated", extra={"key": key, "cause": str(error)})


def _parts_of(key: str) -> str:
    return f"{_PREFIX}{key}:parts"
