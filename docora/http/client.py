"""The only outbound HTTP of Docora: many requests at once over one libcurl multi handle, driven by `poll`.

What it keeps, for webhooks and git hosts alike:
- The very address that is dialled is checked when its socket is opened, and so is every other address of its name
  (`docora.http.resolver`): one that may not be called refuses the name. A kept connection leads where it led when it was
  checked. No proxy, no redirect, no cookie, no netrc.
- A request that is not `repeatable` is sent at most once. By itself libcurl repeats even a POST when a kept-alive
  connection turns out to be dead, and the receiver may have counted the first one.
- Whatever a server does, memory and time are bounded.
- A connection carries one request at a time (HTTP/1.1), so `max_connections` bounds both.

Speed comes from doing little per request: handles are used again and keep every option that does not change, headers
are collected by `list.append`, bodies are not copied, and waiting is left to libcurl (driving it from a Python event
loop by its socket callbacks costs half as much again). Not thread-safe: one client per thread.
"""

import os
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

import pycurl

from docora.http.addresses import Network
from docora.http.messages import Cause, Outcome, Request, url_refusal
from docora.http.resolver import Names
from docora.http.transfer import Transfer

__all__ = ["Cause", "HttpClient", "Outcome", "Request"]

# Seconds. libcurl's select() does not see descriptors from 1024 on; this is how late an answer on one can be noticed.
_LONGEST_WAIT: Final = 0.05

# From this wait on, a request is sent when it is submitted; until then with others at the next `poll`, which costs half.
_A_WHILE: Final = 0.001

_clients: "WeakSet[HttpClient]" = WeakSet()
_inherited: "list[HttpClient]" = []
# In a forked child the sockets are the parent's, and libcurl says goodbye on TLS connections when it is freed.
# There the clients are therefore kept, unused, until the process ends.
os.register_at_fork(after_in_child=lambda: _inherited.extend(_clients))


class HttpClient:
    """`submit` requests, `poll` for what became of them; or `request` one and wait.

    `ca_file` (PEM) replaces the system's certificate authorities. A client belongs to the process that made it: in a
    forked child every use is a RuntimeError, and so is every use after `close`.
    """

    def __init__(
        self,
        allowed_networks: Sequence[Network] = (),
        *,
        allow_http: bool = False,
        user_agent: str = "Docora",
        max_connections: int = 64,
        ca_file: str | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._allow_http = allow_http
        self._max_connections = max_connections
        self._handle_options = (Names(allowed_networks), user_agent, ca_file)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections)
        self._idle: dict[str, list[Transfer]] = {}  # by method
        self._waiting: deque[Request] = deque()
        self._running: dict[Any, Transfer] = {}  # by easy handle
        self._untouched: list[Transfer] = []  # running, and libcurl has had no occasion yet to do anything about them
        self._finished: list[tuple[Request, Outcome]] = []
        self._raised: list[BaseException] = []
        self._waited = False  # the last time: servers are slow, and there is time to send each request at once
        self._closed = False
        _clients.add(self)

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and have not come back from `poll` yet."""
        return len(self._waiting) + len(self._running) + len(self._finished)

    def submit(self, request: Request) -> None:
        """Start the request, or put it in line when `max_connections` are busy; its timeouts count from its start."""
        self._check_usable()
        sentence = url_refusal(request.url, self._allow_http)
        if sentence is not None:
            self._finished.append((request, _refused(sentence)))
        elif len(self._running) < self._max_connections:
            self._start(request)
        else:
            self._waiting.append(request)

    def poll(self, timeout: float) -> list[tuple[Request, Outcome]]:
        """Drive everything in flight and hand over what has ended, in the order in which it ended.

        Waits at most `timeout` seconds, and not at all when something has ended or nothing is in flight. What was
        raised in a callback (by a signal handler, say) is raised here; no outcome is lost by it.
        """
        self._check_usable()
        deadline = time.monotonic() + timeout
        self._drive()
        while self._running and not self._finished and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
            self._drive()
        finished, self._finished = self._finished, []
        return finished

    def request(self, request: Request) -> Outcome:
        """One request, waited for; RuntimeError while others are in flight."""
        if self.in_flight:
            raise RuntimeError("Other requests are in flight: use submit and poll.")
        self.submit(request)
        try:
            while not (finished := self.poll(1.0)):
                pass
        finally:  # nothing is left unless an exception came in between
            self.abort()
            self._finished.clear()
        return finished[0][1]

    def withdraw(self) -> list[Request]:
        """Take back, in their order, the requests for which nothing has been done yet: no server can know of them."""
        self._check_usable()
        withdrawn = [transfer.request for transfer in self._untouched] + list(self._waiting)
        for transfer in self._untouched:
            self._drop(transfer.curl)
        self._untouched.clear()
        self._waiting.clear()
        return withdrawn

    def abort(self) -> list[Request]:
        """Drop every request that has not ended, and return them; any of them may have reached its server."""
        self._check_usable()
        aborted = [transfer.request for transfer in self._running.values()] + list(self._waiting)
        for curl in list(self._running):
            self._drop(curl)
        self._untouched.clear()
        self._waiting.clear()
        return aborted

    def close(self) -> None:
        """Drop everything and close all connections. May wait for a name that is being looked up right now."""
        if self._closed or self._pid != os.getpid():
            return
        self.abort()
        self._finished.clear()
        self._closed = True
        self._multi.close()
        for transfers in self._idle.values():
            for transfer in transfers:
                transfer.curl.close()
        self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("This HttpClient belongs to the parent process; a forked child makes its own.")
        if self._closed:
            raise RuntimeError("This HttpClient is closed.")

    def _start(self, request: Request) -> None:
        idle = self._idle.setdefault(request.method, [])
        transfer = idle.pop() if idle else Transfer(request.method, *self._handle_options)
        transfer.begin(request)
        self._multi.add_handle(transfer.curl)
        self._running[transfer.curl] = transfer
        self._untouched.append(transfer)
        if self._waited:
            self._perform()

    def _drop(self, curl: Any) -> None:
        del self._running[curl]
        self._multi.remove_handle(curl)
        curl.close()

    def _perform(self) -> None:
        self._untouched.clear()
        self._multi.perform()

    def _drive(self) -> None:
        """Let libcurl do all that it can without waiting, gather what has ended, start what was in line."""
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
        """Until a socket is ready or libcurl has something to do, at most `seconds`."""
        timer = self._multi.timeout()  # milliseconds, 0: there is something to do, -1: only sockets matter
        if timer == 0:
            return
        if timer > 0:
            seconds = min(seconds, timer / 1000)
        began = time.monotonic()
        if self._multi.select(min(seconds, _LONGEST_WAIT)) <= 0:
            time.sleep(0.001)  # it comes back at once when there is no socket to wait for: never spin
        self._waited = time.monotonic() - began > _A_WHILE


def _refused(sentence: str) -> Outcome:
    """For a URL that is not even tried."""
    return Outcome(
        status=None,
        cause=Cause.REFUSED_ADDRESS,
        message=sentence,
        headers={},
        body=b"",
        truncated=False,
        elapsed=0.0,
        reached=False,
    )
