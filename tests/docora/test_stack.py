"""Calls that cross the end of a chunk of the stack."""

import resource
import sys
import threading
from collections.abc import Callable

import pytest

from docora.stack import with_large_stack

CALLS, DEEPEST = 200, 300


def leaf() -> None:
    pass


def calls(depth: int) -> None:
    """Call a function many times at this depth."""
    if depth:
        calls(depth - 1)
    else:
        for _ in range(CALLS):
            leaf()


def worst(run: Callable[[int], None]) -> int:
    """Return the most page faults of any depth, in a thread with a new stack."""
    found: list[int] = []

    def measure() -> None:
        for depth in range(DEEPEST):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            run(depth)
            found.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return max(found)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts what CPython does")
def test_large_chunk_saves_mapping_memory_for_each_call() -> None:
    assert worst(with_large_stack(calls)) < CALLS / 4
    if sys.version_info < (3, 14):  # later ones keep an empty chunk
        assert worst(calls) >= CALLS  # some depth is at the end of a chunk


def test_function_is_called_as_before() -> None:
    assert with_large_stack(max)(1, 2, key=lambda number: -number) == 1
    with pytest.raises(ZeroDivisionError):
        with_large_stack(divmod)(1, 0)
