"""A wall clock that somebody sets while a process runs. Only what tells the time of day moves: nobody can set the clocks
that count since boot."""

import sys
import time
from datetime import datetime, timedelta, tzinfo

_OURS = ("docora.", "repositories_app.", "deliveries_app.", "django.utils.timezone")
_right_time = time.time
_shift = 0.0


class _Meta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class _SetDatetime(datetime, metaclass=_Meta):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(seconds=_shift)


def set_clock(seconds: float) -> None:
    """From now on this process's wall clock is so many seconds ahead of the right one (behind it, if negative).

    For a forked process: it is never taken back."""
    global _shift
    _shift = seconds
    time.time = lambda: _right_time() + _shift
    for name, module in list(sys.modules.items()):
        if name.startswith(_OURS) and getattr(module, "datetime", None) is datetime:
            module.datetime = _SetDatetime  # type: ignore[attr-defined]
