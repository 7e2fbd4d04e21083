"""The web process: waitress on an inherited listening socket, with time limits and a graceful shutdown.

waitress reads a whole request before it gives it to a thread, and buffers the response in memory or in a temporary file, so
a slow client occupies no thread. This module adds a deadline for a whole request, closes clients that stop reading, limits
what is buffered for all of them, gives probes threads of their own, and finishes requests under way before the process ends.
The main thread owns all connections and checks the limits.

    python -m docora.server.web LISTENER READY THREADS APPLICATION

LISTENER is the descriptor of the socket. When the application is loaded, one byte is written to the descriptor READY.
"""

import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any

from django.template.loader import render_to_string
from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import Error

from docora.web.error_codes import BY_STATUS, ErrorCode
from docora.web.errors import JSON_PREFIXES

_BACKLOG = 1024  # connections that wait to be accepted
_CONNECTIONS = 1000  # open at once
_WAITING = _CONNECTIONS // 2  # requests that wait for a thread
_OPEN_FILES = 4 * _CONNECTIONS  # each may have a temporary file for its request and one for its response
# Bytes. More than a push hook accepts, so that its view can reject bodies slightly above its own limit.
_MAX_BODY = 26 * 1024 * 1024
_MAX_HEADER = 64 * 1024  # bytes before the body; waitress and Django take quadratic time for some
_IN_MEMORY = 64 * 1024  # bytes of a body, and of a response; larger ones are in temporary files
_HIGH_WATERMARK = 256 * 1024 * 1024  # bytes of a response; a thread that has buffered more waits for the client
_MAX_BUFFERED = 4 * _HIGH_WATERMARK  # bytes of all requests and responses, most of them in temporary files
_SEND_BUFFER = 256 * 1024  # bytes of a response in the kernel; the default, up to 4 MB, would hide slow readers
_IDLE_SECONDS = 150  # between two requests; longer than the 120 of some proxies, which should close first
_CHECK_SECONDS = 0.5  # between two checks of the limits

_PAGES = {
    413: ("This is too large", "Nothing was saved. Go back, shorten what you entered and submit it again."),
    503: ("Docora is busy", "Too many requests are waiting. Try again in a few seconds."),
}
"""Status of an error page → its heading and text, if they are not made from the error."""

LIVENESS = frozenset({"/health", "/version"})
"""Probes that use neither the database nor Redis."""
READINESS = frozenset({"/health/web", "/health/ready", "/metrics"})
"""Probes that may wait for the database. They must not delay the others."""
LIVENESS_THREADS = 1
READINESS_THREADS = 2


class Task(WSGITask):  # type: ignore[misc]
    """One request. A response to HEAD has no body, and during a shutdown every response closes its connection."""

    def build_response_header(self) -> Any:
        if not self.channel.server.accepting:
            self.set_close_on_finish()
        header = super().build_response_header()
        if self.request.command == "HEAD":
            self.chunked_response = False  # otherwise a final chunk would follow
        return header

    def write(self, data: bytes) -> None:
        super().write(b"" if self.request.command == "HEAD" else data)


class ErrorResponseTask(ErrorTask):  # type: ignore[misc]
    """The response to a request that is malformed or too large: a page for a browser, otherwise the shape of the API's errors.

    Headers that are too large are not read, so these requests get JSON.
    """

    def execute(self) -> None:
        error = self.request.error
        path = getattr(self.request, "path", "")  # absent if the first line is malformed
        is_browser = "text/html" in self.request.headers.get("ACCEPT", "") and not path.startswith(JSON_PREFIXES)
        body = (_error_page(error) if is_browser else _error_json(error)).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "text/html; charset=utf-8" if is_browser else "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


def _error_json(error: Any) -> str:
    code = BY_STATUS.get(error.code, ErrorCode.INVALID_REQUEST)
    message = f"{error.reason}: {error.body}"
    if code is ErrorCode.BODY_TOO_LARGE:  # the view, which is not reached, has a lower limit
        message = "The body is too large: see the limits of requests at /docs/api/"
    return json.dumps(code.body(message))


def _error_page(error: Any) -> str:
    heading, text = _PAGES.get(
        error.code, (error.reason, "Docora couldn't process this request. Go back and try again.")
    )
    return render_to_string("docora/error.html", {"code": error.code, "heading": heading, "text": text})


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """Refuse URLs that can't be split, such as `http://[::1`, and bodies whose length is given in two ways.

    For such a URL, waitress would log an error and close the connection. A proxy that reads the other length would take a part
    of the body for the next request, which may be another client's. Only HTTP/1.1 has `Transfer-Encoding` (RFC 9112, 6.1).
    """

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:
            raise ParsingError("Bad URI") from None
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("Send either Content-Length or Transfer-Encoding")
        if "TRANSFER_ENCODING" in self.headers:  # waitress has read and removed it otherwise
            raise ParsingError("This version of HTTP has no Transfer-Encoding")


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection and its time limits."""

    task_class = Task
    parser_class = Parser
    error_task_class = ErrorResponseTask
    request_seconds = 30.0
    """Limit for a whole request, from its first byte or, for the first request, from when the connection was accepted."""
    unread_seconds = 60.0
    """Limit for a client that does not read its response, or that keeps a thread waiting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._request_began: float | None = time.monotonic()
        self._unread = (-1.0, 0.0)  # when bytes were last sent, and when this value was first seen
        super().__init__(*args, **kwargs)

    def received(self, data: bytes) -> Any:
        if self._request_began is None:
            self._request_began = time.monotonic()
        return super().received(data)

    def send_continue(self) -> None:
        """Ask for the body, but not if there is none or the request is refused: waitress would wait for it."""
        if not self.request.completed:
            super().send_continue()

    def service(self) -> None:
        self._request_began = None  # not in `received`, because empty lines are not a request
        super().service()

    @property
    def buffered(self) -> Any:
        """Bytes of its requests and responses."""
        bodies = [request.body_bytes_received for request in (*self.requests, self.request) if request]
        return sum(bodies, self.total_outbufs_len)

    def is_idle(self) -> bool:
        return not (self.requests or self.request or self.total_outbufs_len)

    def is_overdue(self, now: float) -> bool:
        if self.total_outbufs_len:
            thread_is_waiting = self.requests and self.total_outbufs_len > self.adj.outbuf_high_watermark / 2
            sent = 0.0 if thread_is_waiting else self.last_activity
            if self._unread[0] != sent:
                self._unread = (sent, now)
            return now - self._unread[1] > self.unread_seconds
        return (
            not self.requests and self._request_began is not None and now - self._request_began > self.request_seconds
        )


class _NewestFirst(deque[HTTPChannel]):
    """A queue of probes, of which the newest is next.

    Anyone can send probes. In order of arrival, a load balancer's would wait behind hundreds from a stranger, and the load
    balancer would stop using a process that works.
    """

    def popleft(self) -> HTTPChannel:
        return self.pop()


class _Busy(Error):  # type: ignore[misc]
    code, reason = 503, "Service Unavailable"


class Dispatcher:
    """Gives each request to a thread. Probes have threads of their own, so they never wait for other requests.

    If `_WAITING` requests wait, others are refused at once, so that connections are left for probes. waitress adds a
    connection again for each of its requests, so the path of the next one decides.
    """

    def __init__(self, requests: ThreadedTaskDispatcher) -> None:
        self._requests = requests
        self._probes: dict[str, ThreadedTaskDispatcher] = {}
        for paths, threads in ((LIVENESS, LIVENESS_THREADS), (READINESS, READINESS_THREADS)):
            own = ThreadedTaskDispatcher()
            own.queue = _NewestFirst()
            own.set_thread_count(threads)
            self._probes |= dict.fromkeys(paths, own)

    def add_task(self, channel: HTTPChannel) -> None:
        path = getattr(channel.requests[0], "path", "")  # absent if the request is malformed
        dispatcher = self._probes.get(path, self._requests)
        if dispatcher is self._requests and len(dispatcher.queue) >= _WAITING:
            channel.requests[0].error = _Busy("too many requests are waiting, try again later")
            dispatcher = self._probes["/health"]
        dispatcher.add_task(channel)


class WebServer:
    """A server that runs until a signal handler or another thread calls `stop`, and then drains."""

    settle_seconds = 1.0
    """How long after `stop` idle connections stay open."""
    drain_seconds = 10.0
    """How long after `stop` requests and responses under way may take."""

    def __init__(self, application: Callable[..., Any], listener: socket.socket, threads: int) -> None:
        self._stopping = False
        self._next_check = 0.0
        self._map: dict[int, Any] = {}
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # inherited by connections
        self._server = create_server(
            application,
            map=self._map,
            sockets=[listener],
            threads=threads,
            backlog=_BACKLOG,
            connection_limit=_CONNECTIONS,
            max_request_header_size=_MAX_HEADER,
            max_request_body_size=_MAX_BODY,
            inbuf_overflow=_IN_MEMORY,
            outbuf_overflow=_IN_MEMORY,
            outbuf_high_watermark=_HIGH_WATERMARK,
            channel_timeout=_IDLE_SECONDS,
            clear_untrusted_proxy_headers=False,  # TrustedProxyMiddleware decides
            log_socket_errors=False,
            ident="",
        )
        self._server.channel_class = Channel
        self._server.task_dispatcher = Dispatcher(self._server.task_dispatcher)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it logs each request that waits for a thread

    def run(self) -> None:
        while not self._stopping:
            self._step()
        # Accept queued connections: if no other process has the socket, closing it would reset them.
        for _ in range(_BACKLOG):
            self._server.handle_accept()
        # Close only the listener. `server.close()` would break `pull_trigger()` for threads.
        wasyncore.dispatcher.close(self._server)
        began = time.monotonic()
        while self._server.active_channels and (now := time.monotonic()) < began + self.drain_seconds:
            self._step(close_idle=now > began + self.settle_seconds)

    def stop(self) -> None:
        self._stopping = True
        self._server.pull_trigger()

    def _step(self, *, close_idle: bool = False) -> None:
        """Wait for events and handle them. Every `_CHECK_SECONDS`, close connections that have exceeded a limit."""
        wasyncore.loop(_CHECK_SECONDS, use_poll=True, map=self._map, count=1)
        now = time.monotonic()
        if now < self._next_check and not close_idle:
            return
        self._next_check = now + _CHECK_SECONDS
        channels = list(self._server.active_channels.values())
        for channel in channels:
            if channel.is_overdue(now) or (close_idle and channel.is_idle()):
                channel.handle_close()  # also wakes a thread that waits for the client
        self._limit_buffered(channels)

    def _limit_buffered(self, channels: list[Channel]) -> None:
        """Close clients that fill the disk between them, first those that stopped sending or reading the longest ago."""
        buffered = {channel: channel.buffered for channel in channels}
        excess = sum(buffered.values()) - _MAX_BUFFERED
        for channel in sorted(channels, key=lambda channel: channel.last_activity):
            if excess <= 0:
                return
            if buffered[channel]:
                excess -= buffered[channel]
                channel.handle_close()


def main(listener: str, ready: str, threads: str, application: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # the hard limit is lower
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _OPEN_FILES), hard))
    module, _, name = application.partition(":")
    gc.disable()  # until everything is imported, as in `docora.cli.main`
    loaded = getattr(import_module(module), name)
    gc.freeze()
    gc.enable()
    server = WebServer(loaded, socket.socket(fileno=int(listener)), int(threads))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the manager acts on it
    os.write(int(ready), b"!")
    os.close(int(ready))
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
