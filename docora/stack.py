"""Run a function, and everything that it calls, in one large chunk of Python's stack.

CPython keeps the frames of a thread in chunks of 16 KB. Until 3.14, a loop whose calls cross the end of a chunk maps and
unmaps the next chunk each time. A page with a long list does so thousands of times, which takes a quarter of the page's time.
A frame that is larger than a chunk gets a chunk of twice its size, and the calls below it use the rest.
"""

from collections.abc import Callable

_WORDS = 1 << 16
"""Words of 8 bytes: half a megabyte for the frame, which is never touched, and as much for the calls below it."""


def with_large_stack[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that calls this one in a large chunk of its own."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_stacksize=_WORDS)
    return call
