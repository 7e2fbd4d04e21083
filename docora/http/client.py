"""Docora's only outbound HTTP client: concurrent requests over one libcurl multi handle, driven by `poll`.

Guarantees, for webhooks and git hosts alike:
- The address is checked when its socket is opened, together with every other address of the host name
  (`docora.http.resolver`); one blocked address blocks the name. A kept-alive connection stays on its checked address.
  Redirects, cookies and netrc are off, and so are proxies, except for the one that is passed (`docora.http.egress`).
- A request that is not `repeatable` is sent at most once. On its own, libcurl resends even a POST when a kept-alive
  connection turns out to be dead, and the server may already have processed the first one.
- Memory and time are bounded, whatever the server does.
- A connection carries one request at a time (HTTP/1.1), so `max_connections` also bounds concurrent requests.

The client is fast because it does little per request: it reuses handles with their options, collects headers with
`list.append`, does not copy bodies and lets libcurl do the waiting (a Python event loop on libcurl's socket callbacks
costs 50% more). It is not thread-safe: use one client per thread.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Self

import pycurl

from docora.http.addresses import Network
from docora.http.messages import Cause, Outcome, Request, url_blocked_reason
from docora.http.resolver import Resolver
from docora.http.transfer import Transfer

__all__ = ["Cause", "HttpClient", "Outcome", "Request"]

# Seconds. libcurl's select() ignores descriptors of 1024 and above, so a response on one is noticed only after this time.
_MAX_WAIT: Final = 0.05

# Seconds. If the last wait was longer than this, `submit` sends at once. Otherwise requests are sent in a batch by the
# next `poll`, which halves the cost.
_LONG_WAIT: Final = 0.001


class HttpClient:
    """`submit` requests and `poll` for their outcomes, or send a single `request` and wait for it.

    `ca_file` (PEM) replaces the system's certificate authorities. `proxy` is the URL of an egress proxy, or empty. Don't
    fork while a client is open: both processes would write to its connections.
    """

    def __init__(
        self,
        allowed_networks: Sequence[Network] = (),
        *,
        allow_http: bool = False,
        max_connections: int = 64,
        ca_file: str | None = None,
        proxy: str = "",
    ) -> None:
        self._allow_http = allow_http
        self._max_connections = max_connections
        self.resolver = Resolver(allowed_networks)
        self._handle_options = (self.resolver, ca_file, proxy)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections)
        self._idle: dict[str, list[Transfer]] = {}  # by method
        self._waiting: deque[Request] = deque()
        self._running: dict[Any, Transfer] = {}  # by easy handle
        self._unstarted: list[Transfer] = []  # in `_running`, but libcurl has not acted on them yet
        self._finished: list[tuple[Request, Outcome]] = []
        self._raised: list[BaseException] = []
        self._waited = False  # the last wait was long, so there is time to send each request on `submit`

    @property
    def in_flight(self) -> int:
        """Number of submitted requests whose outcome `poll` has not returned yet."""
        return len(self._waiting) + len(self._running) + len(self._finished)

    def submit(self, request: Request) -> None:
        """Start the request, or queue it while `max_connections` are busy. Its timeouts begin when it starts."""
        reason = url_blocked_reason(request.url, self._allow_http)
        if reason is not None:
            self._finished.append((request, Outcome(None, Cause.REFUSED_ADDRESS, reason)))
        elif len(self._running) < self._max_connections:
            self._start(request)
        else:
            self._waiting.append(request)

    def poll(self, timeout: float) -> list[tuple[Request, Outcome]]:
        """Drive the requests in flight and return the finished ones, in the order in which they finished.

        Wait at most `timeout` seconds; return at once if a request has finished or none is in flight. An exception from
        a callback (a signal handler, for example) is raised here; the next call still returns all outcomes.
        """
        deadline = time.monotonic() + timeout
        self._drive()
        while self._running and not self._finished and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
            self._drive()
        finished, self._finished = self._finished, []
        return finished

    def request(self, request: Request, tick: Callable[[], None] | None = None) -> Outcome:
        """Send one request and return its outcome. Call `tick` about every second meanwhile.

        Raises RuntimeError if other requests are in flight.
        """
        if self.in_flight:
            raise RuntimeError("Other requests are in flight: use submit and poll.")
        self.submit(request)
        try:
            while not (finished := self.poll(1.0)):
                if tick:
                    tick()
        finally:  # after an exception, drop the request
            self.reset()
        return finished[0][1]

    def withdraw(self) -> list[Request]:
        """Cancel the requests that have not been started, and return them in order. No server has seen any of them."""
        return self._cancel(self._unstarted)

    def abort(self) -> list[Request]:
        """Cancel every unfinished request, and return them. Any of them may have reached its server."""
        return self._cancel(self._running.values())

    def reset(self) -> None:
        """Cancel all requests and forget their outcomes. Idle connections stay open."""
        self.abort()
        self._finished.clear()

    def close(self) -> None:
        """Cancel all requests and close all connections. May block until a running DNS lookup ends."""
        self.reset()
        self._multi.close()
        for transfers in self._idle.values():
            for transfer in transfers:
                transfer.curl.close()
        self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, request: Request) -> None:
        idle = self._idle.setdefault(request.method, [])
        transfer = idle.pop() if idle else Transfer(request.method, *self._handle_options)
        transfer.begin(request)
        self._multi.add_handle(transfer.curl)
        self._running[transfer.curl] = transfer
        self._unstarted.append(transfer)
        if self._waited:
            self._perform()

    def _cancel(self, transfers: Iterable[Transfer]) -> list[Request]:
        """Cancel these transfers and all waiting requests, and return their requests."""
        cancelled = list(transfers)
        for transfer in cancelled:
            del self._running[transfer.curl]
            self._multi.remove_handle(transfer.curl)
            transfer.curl.close()
        requests = [transfer.request for transfer in cancelled] + list(self._waiting)
        self._unstarted.clear()
        self._waiting.clear()
        return requests

    def _perform(self) -> None:
        self._unstarted.clear()
        self._multi.perform()

    def _drive(self) -> None:
        """Let libcurl do what it can without waiting, collect finished requests and start queued ones."""
        self._perform()
        _, succeeded, failed = self._multi.info_read()
        for curl in succeeded:
            self._end(curl, pycurl.E_OK, "")
        for curl, code, text in failed:
            if (error := self._running[curl].raised) is not None:
                self._raised.append(error)
            self._end(curl, code, text)
        while self._waiting and len(self._running) < self._max_connections:
            self._start(self._waiting.popleft())
        if self._raised:
            raise self._raised.pop(0)

    def _end(self, curl: Any, code: int, text: str) -> None:
        transfer = self._running.pop(curl)
        self._multi.remove_handle(curl)
        request = transfer.request
        self._finished.append((request, transfer.finish(code, text)))
        self._idle[request.method].append(transfer)

    def _wait(self, seconds: float) -> None:
        """Wait until a socket is ready or libcurl has work to do, at most `seconds`."""
        timer = self._multi.timeout()  # milliseconds; 0: work is due now, -1: no timer is set
        if timer == 0:
            return
        if timer > 0:
            seconds = min(seconds, timer / 1000)
        began = time.monotonic()
        if self._multi.select(min(seconds, _MAX_WAIT)) <= 0:
            time.sleep(0.001)  # select() returns at once if there is no socket to wait for
        self._waited = time.monotonic() - began > _LONG_WAIT
