"""Live counters in Redis hashes, polled by the progress bars, and their rate over the last seconds.

A run has counters of its own. Those of a bulk operation are the sum of the parts of its runs, which are kept beside it, so
that each run can replace its part.

The counters are a cache of database rows. Only code that writes the rows sets counters (`start`, `seed`), advances them, and
removes them once the final numbers are committed. If counters are missing, `read` returns None for them, and the caller
counts the rows. No function here raises when Redis is down.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from docora.redis.connection import RedisError, connection, logging_outage

logger = logging.getLogger(__name__)

TTL_SECONDS = 24 * 3600
SUM_SECONDS = 300
"""How long a sum is kept after it is seeded. It may lack parts, because Redis was down or a writer died."""
_PREFIX = "docora:progress:"
_LOG_INTERVAL_SECONDS = 60.0
_logged_at: float | None = None

WINDOW_SECONDS = 20
FIRST_RATE_SECONDS = 5
"""A rate is measured over a window, and not before the counters are this old."""
_KEPT_SECONDS = 3 * WINDOW_SECONDS

# Each script begins with this.
_BEGIN = f"""
local counters, parts, samples = KEYS[1], KEYS[2], KEYS[3]
local function set(key, values, ttl)
  redis.call('DEL', key)
  for name, value in pairs(cjson.decode(values)) do redis.call('HSET', key, name, value) end
  redis.call('EXPIRE', key, ttl)
end
local function sample()  -- at most one per second: the second, and the files acknowledged until then
  local second = tonumber(redis.call('TIME')[1])
  local files = redis.call('HGET', counters, 'files_done') or '0'
  redis.call('ZREMRANGEBYSCORE', samples, second, '+inf')  -- later ones are from before the clock was set back
  redis.call('ZREMRANGEBYSCORE', samples, '-inf', second - {_KEPT_SECONDS})
  redis.call('ZADD', samples, second, second .. ':' .. files)
  redis.call('EXPIRE', samples, {TTL_SECONDS})
end
"""

_START = """
redis.call('DEL', samples)
set(counters, ARGV[1], ARGV[2])
sample()
return 1
"""

# Advance only a counter that exists: after a flush, HINCRBY would create one that starts at zero.
_ADVANCE = """
if redis.call('EXISTS', counters) == 0 then return 0 end
for i = 1, #ARGV, 2 do redis.call('HINCRBY', counters, ARGV[i], ARGV[i + 1]) end
sample()
return 1
"""

# Keep existing counters: they may be newer than the rows that the caller has read.
_SEED = """
if redis.call('EXISTS', counters, parts) == 2 then return end
set(counters, ARGV[1], ARGV[3])
set(parts, ARGV[2], ARGV[3])
sample()
"""

# Several writers share one sum. Each replaces its own part, so writing the same part twice counts once.
_PUT = """
if redis.call('EXISTS', counters, parts) < 2 then return 0 end
local before, part = cjson.decode(redis.call('HGET', parts, ARGV[1]) or '{}'), cjson.decode(ARGV[2])
if before.completed == 1 and part.completed ~= 1 then return 1 end
for name, value in pairs(part) do
  if name == 'started' then
    local first = tonumber(redis.call('HGET', counters, name) or '0')
    if value > 0 and (first == 0 or value < first) then redis.call('HSET', counters, name, ARGV[3]) end
  elseif value ~= (before[name] or 0) then
    redis.call('HINCRBY', counters, name, string.format('%.0f', value - (before[name] or 0)))
  end
end
redis.call('HSET', parts, ARGV[1], ARGV[2])
sample()
return 1
"""


@dataclass(frozen=True)
class Movement:
    """How counters have moved.

    `idle` is the number of seconds since the counters last moved, or since a part of a large file was sent. `unacknowledged`
    is the number of seconds since a file was last acknowledged or, if no sample shows that, the age of the oldest sample.

    `rate` is in files per second over the last `WINDOW_SECONDS`. It is None if no file was acknowledged in that time, or if
    the counters are younger than `FIRST_RATE_SECONDS`.
    """

    rate: float | None
    idle: float
    unacknowledged: float


def start(key: str, counts: Mapping[str, int]) -> bool:
    """Set the counters of `key`, replacing existing ones. Return False if Redis is down: then start them again later."""
    return _run(_START, key, _texts(counts), TTL_SECONDS)


def seed(key: str, counts: Mapping[str, int], parts: Mapping[str, Mapping[str, int]]) -> None:
    """Set the counters of `key`, which are the sum of `parts`, for `SUM_SECONDS`, unless they exist."""
    of_parts = json.dumps({name: json.dumps(part) for name, part in parts.items()})
    _run(_SEED, key, _texts(counts), of_parts, SUM_SECONDS)


def advance(key: str, **deltas: int) -> bool:
    """Add to existing counters. Return False if they are missing or Redis is down: then `start` them from the rows.

    Without deltas, only record that the run is not idle, because it has sent parts of a large file.
    """
    return _run(_ADVANCE, key, *(part for name, delta in deltas.items() if delta for part in (name, delta)))


def put(key: str, name: str, part: Mapping[str, int]) -> bool:
    """Replace the part `name` of a sum.

    Numbers are added up, except for `started`: the earliest one is kept. A `completed` part is final, so later parts that
    are not completed are ignored.

    Return False if the counters are missing: then `seed` them from the rows and put the part again. Return True if Redis
    is down, because there is nothing to seed.
    """
    return _run(_PUT, key, name, json.dumps(part), part.get("started", 0), without_redis=True)


def _run(script: str, key: str, *arguments: str | int, without_redis: bool = False) -> bool:
    """Run a script on the keys in Redis of `key`, and return its result, or `without_redis` if Redis is down."""
    global _logged_at
    names = _names_of(key)
    try:
        return bool(connection().eval(_BEGIN + script, len(names), *names, *arguments))
    except RedisError as error:
        now = time.monotonic()
        if _logged_at is None or now - _logged_at >= _LOG_INTERVAL_SECONDS:  # a sync does this several times a second
            _logged_at = now
            logger.warning("progress_not_updated", extra={"key": key, "cause": str(error)})
        return without_redis


def _texts(counts: Mapping[str, int]) -> str:
    """Return the counters as JSON for a script. They are texts, because Lua would write large numbers with an exponent."""
    return json.dumps({name: str(value) for name, value in counts.items()})


def read(keys: Sequence[str]) -> list[dict[str, int] | None]:
    """Return the counters of several keys in one round trip, with None for each missing one."""
    try:
        with connection().pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(_PREFIX + key)
            answers = pipeline.execute()
    except RedisError:
        return [None] * len(keys)
    return [_counts(answer) for answer in answers]


def _counts(answer: Mapping[bytes, bytes]) -> dict[str, int] | None:
    return {name.decode(): int(value) for name, value in answer.items()} or None


def read_moving(key: str) -> tuple[dict[str, int] | None, Movement | None]:
    """Return the counters of `key` and how they have moved, in one round trip.

    Each is None if it is missing, and both are if Redis is down.
    """
    try:
        with connection().pipeline(transaction=False) as pipeline:
            pipeline.hgetall(_PREFIX + key)
            pipeline.time()
            pipeline.zrange(_names_of(key)[2], 0, -1)
            answer, (second, _), members = pipeline.execute()
    except RedisError:
        return None, None
    samples = [tuple(map(int, member.decode().split(":"))) for member in members]
    return _counts(answer), _movement(samples, second) if samples else None


def _movement(samples: Sequence[tuple[int, ...]], now: int) -> Movement:
    """Return the movement from samples of (second, files), oldest first."""
    before = [sample for sample in samples if sample[0] <= now - WINDOW_SECONDS]
    since, files_then = before[-1] if before else samples[0]
    last, files_now = samples[-1]
    since = max(since, now - WINDOW_SECONDS)
    files = files_now - files_then
    rate = files / (now - since) if files > 0 and now - since >= FIRST_RATE_SECONDS else None
    grew = [second for (_, before_it), (second, files_then) in pairwise(samples) if files_then > before_it]
    return Movement(rate, float(now - last), float(now - (grew[-1] if grew else samples[0][0])))


def finish(*keys: str) -> None:
    """Delete the counters. Call it after the commit that makes the numbers in the rows final."""
    if not keys:
        return
    with logging_outage("progress_not_deleted", key=keys[0], keys=len(keys)):
        connection().delete(*(name for key in keys for name in _names_of(key)))


def _names_of(key: str) -> tuple[str, str, str]:
    """Return the names in Redis of the counters, of the parts of a sum, and of the samples."""
    return _PREFIX + key, f"{_PREFIX}{key}:parts", f"{_PREFIX}{key}:samples"
