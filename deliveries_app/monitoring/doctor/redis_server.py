"""Redis, or Valkey: does it answer and take writes, and would it throw anything away?"""

from collections.abc import Iterator

from django.conf import settings

from deliveries_app.monitoring import health
from deliveries_app.monitoring.doctor.findings import Finding, fine, of_probe, problem, warning
from docora.conf.data_dir import embedded_redis_url
from docora.conf.installation import program
from docora.redis import heartbeat
from docora.redis.connection import RedisError, connection
from docora.text import clean_text, format_bytes

MIN_VERSION = (7, 0)  # `EXPIRE … NX`, with which failures are counted
_KEY = "docora:doctor"
_CLOSE, _FULL = 0.8, 0.95  # of maxmemory


def answers() -> Iterator[Finding]:
    """By writing: a replica, a full one, and one whose disk is full answer a ping as well."""
    words = health.check_redis(heartbeat.read())
    if words != health.OK and embedded_redis_url(settings.DATA_DIR) == settings.REDIS_URL:
        yield problem("The embedded Valkey does not answer.", f"Start {program()} up, which runs it, or set REDIS_URL.")
    elif words != health.OK:
        yield of_probe(words)
    else:
        yield _takes_writes()


def _takes_writes() -> Finding:
    try:
        connection().set(_KEY, "1", ex=10)
    except RedisError as error:
        return problem(
            f"Redis answers, but takes no writes: {clean_text(str(error), 200).rstrip('.')}.",
            "No worker is woken then. REDIS_URL must name a primary, with memory and disk to spare.",
        )
    return fine("Redis answers and takes writes.")


def server() -> Iterator[Finding]:
    """From `INFO`, which hosted services allow where they forbid `CONFIG`."""
    info = connection().info()
    yield _version(info)
    yield _policy(str(info["maxmemory_policy"]), int(info["maxmemory"]))
    yield _memory(int(info["used_memory"]), int(info["maxmemory"]))
    yield _persistence(bool(info.get("aof_enabled")))


def _version(info: dict[str, object]) -> Finding:
    """Valkey tells both its own version and the Redis that it stands in for."""
    compatible = str(info["redis_version"])
    named = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {compatible}"
    wanted = ".".join(map(str, MIN_VERSION))
    if tuple(int(part) for part in compatible.split(".")[:2] if part.isdigit()) >= MIN_VERSION:
        return fine(f"{named} is new enough.")
    return problem(f"{named} is too old: Docora needs Redis {wanted} or newer, or Valkey.", "Upgrade it.")


def _policy(policy: str, maxmemory: int) -> Finding:
    if policy == "noeviction":
        return fine("Redis evicts nothing (maxmemory-policy noeviction).")
    words = f"Redis' maxmemory-policy is {policy}: when memory runs short, waiting jobs and counters vanish unseen."
    advice = "Set maxmemory-policy noeviction, and give other caches a Redis of their own."
    if maxmemory:
        return problem(words, advice)
    return warning(f"{words} No maxmemory is set, so it does not yet.", advice)


def _memory(used: int, maxmemory: int) -> Finding:
    if not maxmemory:
        return fine(f"Redis uses {format_bytes(used)}; no maxmemory is set.")
    words = f"Redis uses {format_bytes(used)} of {format_bytes(maxmemory)} (maxmemory)."
    if used < _CLOSE * maxmemory:
        return fine(words)
    found = problem if used >= _FULL * maxmemory else warning
    return found(
        words, "A full Redis refuses writes, and no worker is woken: raise maxmemory, or see who else fills it."
    )


def _persistence(append_only: bool) -> Finding:
    """Either is fine: what is due stands in the database."""
    kept = "keeps an append-only file" if append_only else "keeps no append-only file, which is fine"
    return fine(
        f"Redis {kept}. What is lost with it: live counters of progress bars (read from the database then), failures that "
        "are counted per address, signs of life, and waiting jobs, which the sweep enqueues again within seconds."
    )
