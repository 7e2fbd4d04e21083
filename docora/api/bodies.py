"""Request bodies of bounded size, whether their length was announced or they come in chunks.

Django reads as much as `Content-Length` says, and so nothing at all of a chunked body. A server that ends the input
itself (`wsgi.input_terminated`; granian does) can be read to the end.
"""

from collections.abc import Callable, Iterator

from django.http import HttpRequest

from docora.errors import ApiError

_PIECE = 65536  # bytes


class TooLarge(ValueError):
    """The body is larger than is accepted; the message says how large it may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The body is too large: send at most {limit:,} bytes")


def pieces(request: HttpRequest, limit: int) -> Iterator[bytes]:
    """The body in pieces, in constant memory; raises `TooLarge`, before the first piece where that is possible."""
    announced = request.META.get("CONTENT_LENGTH") or ""
    if announced.isdecimal():
        if int(announced) > limit:
            raise TooLarge(limit)
        read: Callable[[int], bytes] = request.read
    elif request.META.get("wsgi.input_terminated"):
        read = request.META["wsgi.input"].read
    else:
        return
    size = 0
    while piece := read(_PIECE):
        size += len(piece)
        if size > limit:
            raise TooLarge(limit)
        yield piece


def read_body(request: HttpRequest, limit: int) -> None:
    """Make `request.body` the whole of it, chunked ones included; `ApiError` for one of more than `limit` bytes."""
    try:
        request._body = b"".join(pieces(request, limit))
    except TooLarge as error:
        raise ApiError(str(error), 413) from None
    except OSError:
        raise ApiError("The body ended before it was complete: send it again", 422) from None
