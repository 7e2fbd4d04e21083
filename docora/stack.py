"""Call a function whose frame, and those of its calls, lie in one large piece of Python's stack.

CPython keeps the frames of a thread in pieces of 16 KB. A loop whose calls cross the end of a piece maps the next one and
unmaps it again each time. A page with a long list does so thousands of times, which takes a quarter of its time. A frame that
is larger than a piece gets one of twice its size, and the calls below it use the rest of it.
"""

from collections.abc import Callable

_WORDS = 1 << 16
"""Words of 8 bytes: half a megabyte for the frame, which is never touched, and as much for the calls below it."""


def roomy[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that calls this one in a piece of its own."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_stacksize=_WORDS)
    return call
