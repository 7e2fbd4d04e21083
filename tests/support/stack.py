"""Give tests one large piece of Python's stack.

CPython keeps the frames of a thread in pieces of 16 KB. A loop whose calls cross the end of a piece maps and unmaps the next
one every time: the rendering of a page does so hundreds of times, which took a tenth of the tests' time. A frame that is
larger than a piece gets one of twice its size, and the calls below it use the rest of it.
"""

from collections.abc import Callable

import pytest

_WORDS = (
    1 << 16
)  # of 8 bytes: half a megabyte for the frame, which is never touched, and as much for the calls below it


def roomy[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that calls this one with much room on the stack."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_stacksize=_WORDS)
    return call


def install() -> None:
    """Give room to every test of this process."""
    pytest.Function.runtest = roomy(pytest.Function.runtest)  # type: ignore[method-assign]
