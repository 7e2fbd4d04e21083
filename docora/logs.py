"""Logging through structlog: one JSON object per line, or readable lines on a terminal (`LOG_FORMAT`)."""

import logging
import sys
from typing import Any

import structlog

from docora.redaction import redact, redact_value

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_NOISY = ("rq.worker", "rq.queue", "rq.registry", "rq.scripts", "asyncio", "axes")


def mask_secrets(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Takes what looks like a secret out of every field of the record; runs when tracebacks are text already."""
    return {name: redact_value(value, name) for name, value in event.items()}


def configure(config: dict[str, Any]) -> None:
    """Django's `LOGGING_CONFIG`: every logger of the process, Django's and rq's too, ends in one handler on stderr."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if config["format"] == "console"
        else structlog.processors.JSONRenderer()
    )
    processors: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        # Tracebacks become plain text here: the renderers' pretty ones print local variables, and those hold tokens.
        structlog.processors.format_exc_info,
        mask_secrets,
        renderer,
    ]
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(foreign_pre_chain=_SHARED, processors=processors))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config["level"])
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """A record that cannot be formatted (`%d` and a text) is still one line: logging would print it raw, arguments and
    all, around every processor."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:
            where = f"{record.pathname}:{record.lineno}"
            return redact(f"a record of {record.name} at {where} could not be written: {type(error).__name__}")
