"""The connection to Redis. Timeouts are short: Redis only wakes workers and counts, so nothing should wait for it."""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from django.conf import settings
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import RedisError as RedisError  # for the callers

from docora.conf.data_dir import embedded_redis_url
from docora.conf.installation import program
from docora.text import cause_of

logger = logging.getLogger(__name__)

IN_CLUSTER = (
    "REDIS_URL leads to a Redis Cluster, which Docora can't use.",
    "Use a server without cluster mode: one primary with any number of replicas.",
)
"""What `problem` returns for the errors of a cluster."""


@lru_cache(maxsize=1)
def connection() -> Redis:
    """Return the process's pooled client. redis-py opens new sockets after a fork."""
    return Redis.from_url(settings.REDIS_URL, socket_timeout=2.0, socket_connect_timeout=1.0)


def is_embedded() -> bool:
    """Return whether Redis is the embedded Valkey, which `up` runs, and not the server of another REDIS_URL."""
    return embedded_redis_url(settings.DATA_DIR) == settings.REDIS_URL


@contextmanager
def logging_outage(event: str, **fields: object) -> Iterator[None]:
    """Log the event with the cause and these fields, and continue, if Redis does not respond or refuses a command."""
    try:
        yield
    except RedisError as error:  # redis-py converts the operating system's errors
        logger.warning(event, extra={**fields, "cause": str(error)})


def responds() -> bool:
    """Return whether Redis responds. Waits up to two seconds.

    A Redis that can't save to its disk counts as responding, although it refuses pings.
    """
    try:
        connection().ping()
    except ResponseError as error:
        return str(error).startswith("MISCONF")
    except RedisError:
        return False
    return True


def probe_writes(commands: Redis | Pipeline) -> None:
    """Write a value that expires soon. Raises RedisError if Redis rejects writes.

    A replica and a Redis without memory answer a ping, but workers and the sweep can't use them.
    """
    commands.set("docora:probe", "1", ex=10)


def write_problem() -> tuple[str, str] | None:
    """Return why Redis rejects writes or doesn't respond, and what to do; None if it accepts writes. Waits up to two seconds."""
    try:
        probe_writes(connection())
    except RedisError as error:
        return problem(error)
    return None


def problem(error: RedisError) -> tuple[str, str]:
    """Return what is wrong with Redis, and what to do about it, for people."""
    cause = cause_of(error)
    is_full = "No space left on device" in cause
    if is_full or "MISCONF" in cause:  # Redis refuses every write until it can store it
        reason = cause.rpartition("MISCONF ")[2]
        disk = f"data directory {settings.DATA_DIR}" if is_embedded() else "Redis server"
        state = "is full" if is_full else "cannot be written"
        advice = "Free up space" if is_full else "Check free space and permissions"
        text = f"The disk of the {disk} {state}, so Redis refuses every write: {reason}."
        return text, f"{advice} there; then syncing continues."
    if isinstance(error, AuthenticationError):  # its message doesn't say which of the two
        text = "Redis refuses the user name and password in REDIS_URL, or requires a password."
        return text, "Write it as redis://:password@host:6379/0, with special characters percent-encoded."
    if isinstance(error, BusyLoadingError):
        return f"Redis is starting: {cause}.", "Wait until it has loaded its data."
    has_become_replica = "UNBLOCKED" in cause  # while a worker waited for a job
    if isinstance(error, ReadOnlyError | OutOfMemoryError | MasterDownError) or has_become_replica:
        return f"Redis refuses: {cause}.", "REDIS_URL must point to a primary with free memory."
    if isinstance(error, AskError | ClusterCrossSlotError | ClusterDownError):
        return IN_CLUSTER
    if "NOREPLICAS" in cause:
        return f"Redis refuses: {cause}.", "Start its replicas, or lower its min-replicas-to-write."
    if isinstance(error, ResponseError):
        return f"Redis refuses: {cause}.", "Check the database number in REDIS_URL and the user's permissions."
    if is_embedded():
        text = f"The embedded Valkey does not respond: {cause}."
        return text, f"Start {program()} up, which runs it, or restart it if it is running. Or set REDIS_URL."
    return f"Redis does not respond: {cause}.", _tls_advice(error) or "Check REDIS_URL, and that Redis is running."


def _tls_advice(error: RedisError) -> str:
    """Return what to do if only one side of the connection uses TLS, or if the certificate isn't trusted; or an empty string.

    redis-py raises its own error while it handles the one that says why.
    """
    reason = error.__context__
    if settings.REDIS_URL.startswith("rediss:"):
        if isinstance(reason, ssl.SSLCertVerificationError):
            return "Name the authority that signed the server's certificate: add ?ssl_ca_certs=/path/of/ca.pem to REDIS_URL."
        if isinstance(reason, ssl.SSLError) or "handshake" in str(reason):
            return "Check that the server uses TLS on this port. If it doesn't, REDIS_URL must begin with redis://."
    elif settings.REDIS_URL.startswith("redis:") and (
        isinstance(reason, ConnectionResetError) or "closed by server" in str(error)
    ):
        return "If the server uses TLS on this port, REDIS_URL must begin with rediss://. Otherwise, check that it is running."
    return ""
