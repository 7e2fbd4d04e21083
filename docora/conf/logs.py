"""Logging with structlog: one JSON object per line, or readable lines on a terminal (`LOG_FORMAT`)."""

import logging
import sys
from typing import Any

import structlog

from docora.security.redaction import redact_value

MAX_FIELD = 10_000
"""Approximate maximum number of characters in one field of a log record."""
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_NOISY = ("rq.worker", "rq.queue", "rq.registry", "rq.scripts", "asyncio", "allauth", "waitress")


def without_request(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Remove the request that Django adds to some records. Its text contains the query string, which may have a secret."""
    event.pop("request", None)
    return event


def without_traceback_of_refusal(
    logger: Any, method: str, event: structlog.types.EventDict
) -> structlog.types.EventDict:
    """Remove the traceback of a request that Django refuses: for another host, with an invalid query or a malformed form.

    Anyone can send such requests, and the message says everything.
    """
    logger_name = event.get("logger", "")
    is_client_error = logger_name == "django.request" and event.get("status_code", 500) < 500
    if is_client_error or logger_name.startswith("django.security."):
        event.pop("exc_info", None)
    return event


def mask_secrets(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Mask everything that looks like a secret in the record. Runs after tracebacks have been converted to text."""
    return {name: redact_value(value, name) for name, value in event.items()}


def bounded(limit: int) -> structlog.types.Processor:
    """Return a processor that cuts every field to about `limit` characters.

    Remote servers may send megabytes of text, which log collectors reject. Both ends of a text are kept, because the end of
    a traceback matters most.
    """

    def cut(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {name: _cut(value, limit) for name, value in event.items()}

    return cut


def _cut(value: object, limit: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict | list | tuple | set | frozenset):
        if len(repr(value)) <= limit:
            return value
        return f"[{len(value):,} items, too long to log]"  # a cut text would lose the item names that masking needs
    text = value if isinstance(value, str) else str(value)
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} […{len(text) - limit:,} characters omitted…] {text[-(limit // 2) :]}"


def configure(config: dict[str, Any]) -> None:
    """Send all log records of the process, including Django's and RQ's, to one handler on stderr (`LOGGING_CONFIG`)."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if config["format"] == "console"
        else structlog.processors.JSONRenderer()
    )
    processors: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        without_request,
        without_traceback_of_refusal,
        # Convert tracebacks to plain text: the renderers' own tracebacks print local variables, which hold tokens.
        structlog.processors.format_exc_info,
        bounded(10 * MAX_FIELD),  # masking is slow; the second cut removes any half of a secret that this one leaves
        mask_secrets,
        bounded(MAX_FIELD),
        renderer,
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(foreign_pre_chain=_SHARED, processors=processors))
    handler.setLevel(config["level"])  # Django's loggers and the noisy ones have levels of their own
    logging.getLogger("django").handlers.clear()  # with DEBUG, Django's own prints each record again, unmasked
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config["level"])
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Log one safe line for a record that cannot be formatted (`%d` with a string).

    `logging` would print the record with its arguments, bypassing all processors.
    """

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:
            location = f"{record.pathname}:{record.lineno}"
            return f"a log record of {record.name} at {location} could not be formatted: {type(error).__name__}"
