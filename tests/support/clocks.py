"""Set the wall clock of a running process. Monotonic clocks stay as they are, since those cannot be set."""

import sys
import time
from datetime import datetime, timedelta, tzinfo

_OURS = ("docora.", "repositories_app.", "deliveries_app.", "django.utils.timezone")
_real_time = time.time
_shift = 0.0


class _Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class _ShiftedDatetime(datetime, metaclass=_Meta):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(seconds=_shift)


def set_clock(seconds: float) -> None:
    """Put this process's wall clock `seconds` ahead, or behind if negative. Use it in a forked process: it stays set."""
    global _shift
    _shift = seconds
    time.time = lambda: _real_time() + _shift
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS) and getattr(module, "datetime", None) is datetime:
            module.datetime = _ShiftedDatetime  # type: ignore[attr-defined]
