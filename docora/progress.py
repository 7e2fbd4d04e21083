"""Live counters in Redis hashes: what the progress bars poll.

A counter is a cache of database rows. Its owner *sets* it from the row (`start`) and then advances it; a counter that
is not there reads as None and the reader goes to the rows. No function here raises when Redis is down.
"""

import logging
from collections.abc import Mapping, Sequence

from docora.redis import RedisError, connection

logger = logging.getLogger(__name__)

TTL_SECONDS = 24 * 3600
_PREFIX = "docora:progress:"

# Advance only what was set: a lone increment after a flush would look like a counter that starts at nothing.
_ADVANCE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
"""


def start(key: str, counts: Mapping[str, int]) -> None:
    """Set the counters of `key`, whatever they were."""
    try:
        with connection().pipeline(transaction=True) as pipeline:
            pipeline.delete(_PREFIX + key)
            pipeline.hset(_PREFIX + key, mapping={name: str(value) for name, value in counts.items()})
            pipeline.expire(_PREFIX + key, TTL_SECONDS)
            pipeline.execute()
    except RedisError as error:
        logger.warning("progress_not_counted", extra={"key": key, "cause": str(error)})


def advance(key: str, **deltas: int) -> bool:
    """Add to counters that were set before. False when they are gone or Redis is: set them from the rows then."""
    arguments = [part for name, delta in deltas.items() if delta for part in (name, delta)]
    if not arguments:
        return True
    try:
        return bool(connection().eval(_ADVANCE, 1, _PREFIX + key, *arguments))
    except RedisError as error:
        logger.warning("progress_not_counted", extra={"key": key, "cause": str(error)})
        return False


def read(keys: Sequence[str]) -> list[dict[str, int] | None]:
    """The counters of several keys in one round trip, None for each that is not there."""
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


def finish(key: str) -> None:
    """Forget the counters: the rows hold the final numbers."""
    try:
        connection().delete(_PREFIX + key)
    except RedisError:
        logger.warning("progress_not_forgotten", extra={"key": key})
