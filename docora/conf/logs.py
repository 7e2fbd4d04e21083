"""Logging through structlog: one JSON object per line, or readable lines on a terminal (`LOG_FORMAT`)."""

import logging
import sys
from typing import Any

import structlog

from docora.security.redaction import redact, redact_value

MAX_FIELD = 10_000
"""Characters of one field of a record, about."""
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


def bounded(limit: int) -> structlog.types.Processor:
    """Cuts every field to about so many characters: a stranger's words may be megabytes, which no collector takes. Of a
    text both ends stay, because a traceback says the most at its end."""

    def cut(logger: Any, method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {name: _cut(value, limit) for name, value in event.items()}

    return cut


def _cut(value: object, limit: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict | list | tuple | set | frozenset):
        if len(repr(value)) <= limit:
            return value
        return f"[{len(value):,} items, too long to be logged]"  # as a text they could not be masked by their names
    text = value if isinstance(value, str) else str(value)
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} […{len(text) - limit:,} characters left out…] {text[-(limit // 2) :]}"


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
        bounded(10 * MAX_FIELD),  # looking for secrets takes time; what is half of one at this cut goes with the next
        mask_secrets,
        bounded(MAX_FIELD),
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
