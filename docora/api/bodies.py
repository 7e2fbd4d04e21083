"""Request bodies of bounded size, whether their length was announced or they come in chunks.

Django reads as much as `Content-Length` says, and so nothing at all of a chunked body. A server that ends the input
itself (`wsgi.input_terminated`; granian does) can be read to the end.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from docora.errors import json_error

_PIECE = 65536  # bytes

type View = Callable[..., HttpResponseBase]


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


def bounded(limit: int) -> Callable[[View], View]:
    """A view whose `request.body` is at most `limit` bytes, chunked ones included; larger ones are answered with 413."""

    def decorate(view: View) -> View:
        @wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            try:
                request._body = b"".join(pieces(request, limit))
            except TooLarge as error:
                return json_error(str(error), 413)
            except OSError:
                return json_error("The body ended before it was complete: send it again", 422)
            return view(request, *args, **kwargs)

        return checked

    return decorate
