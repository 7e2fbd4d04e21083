"""One libcurl easy handle: its options, its callbacks and the outcome of its request."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pycurl

from docora.http import USER_AGENT
from docora.http.addresses import blocked_reason, is_address, is_in
from docora.http.egress import THROUGH_PROXY, blocked_behind_proxy, is_direct
from docora.http.messages import GATEWAY_ERRORS, Cause, Outcome, Request, host_of, name_of
from docora.http.resolver import CACHE_SECONDS, ResolvedHost, Resolver, curl_entry, is_loopback_name
from docora.text import clean_text

CUT_AFTER: Final = 1024 * 1024  # bytes of a response body after which the transfer is ended
_BIG_BODY: Final = 64 * 1024  # bytes; a larger request body is released as soon as its request has finished
_SOCKET_BAD: Final[int] = pycurl.SOCKET_BAD
_PROCEED: Final[int] = pycurl.PREREQFUNC_OK
_ABORT: Final[int] = pycurl.PREREQFUNC_ABORT
_NO_REQUEST: Final = Request("GET", "")

_CAUSES: Final[Mapping[int, Cause]] = {
    pycurl.E_COULDNT_RESOLVE_HOST: Cause.DNS,
    pycurl.E_COULDNT_CONNECT: Cause.CONNECT,
    pycurl.E_OPERATION_TIMEDOUT: Cause.TIMEOUT,
    pycurl.E_URL_MALFORMAT: Cause.REFUSED_ADDRESS,
    pycurl.E_UNSUPPORTED_PROTOCOL: Cause.REFUSED_ADDRESS,
    pycurl.E_SSL_CONNECT_ERROR: Cause.TLS,
    pycurl.E_SSL_CERTPROBLEM: Cause.TLS,
    pycurl.E_SSL_CIPHER: Cause.TLS,
    pycurl.E_SSL_CACERT_BADFILE: Cause.TLS,
    pycurl.E_SSL_INVALIDCERTSTATUS: Cause.TLS,
    pycurl.E_SSL_ISSUER_ERROR: Cause.TLS,
    pycurl.E_PEER_FAILED_VERIFICATION: Cause.TLS,
}
_TOO_LARGE: Final = 100  # libcurl's CURLE_TOO_LARGE, which pycurl lacks
_TEXTS: Final = {
    pycurl.E_GOT_NOTHING: "the response headers were incomplete",
    _TOO_LARGE: "a response header is too long",
}
"""Texts for result codes that libcurl may return without one."""
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01]\s+[0-9]{3}(?![0-9])")
_NOT_HTTP: Final = {pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_FTP_WEIRD_SERVER_REPLY}  # once a request was sent


class Transfer:
    """A reusable easy handle for requests of one HTTP method, so that no option has to be unset between requests.

    pycurl prints an exception in a callback to stderr and continues. Callbacks therefore store it in `raised` and abort
    the request; `HttpClient.poll` raises it.
    """

    request: Request
    raised: BaseException | None
    _header_lines: list[bytes]
    _body: bytes | bytearray  # the part of the response body that is kept
    _received: int  # bytes of response body received
    _cut: bool  # the response body exceeded CUT_AFTER
    _sends: int  # number of times libcurl was about to send the request
    _is_connected: bool  # the newest connection is ready, so the request is sent over it
    _blocked: tuple[Cause, str] | None  # why the connection is not allowed
    _errno: int  # why no socket could be opened

    def __init__(self, method: str, resolver: Resolver, ca_file: str | None, proxy: str) -> None:
        self._resolver = resolver
        self._proxy = proxy
        self._via = ""  # the proxy, if the current request goes through it
        self._header_lines = []
        self._timeouts = (0.0, 0.0)
        self._url = ""
        self._pinned: tuple[str, ResolvedHost] | None = None
        self._fresh = False
        self.curl = curl = pycurl.Curl()
        for option, value in (
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),  # the minimum
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.PROXY, ""),  # also ignore proxies set in the environment
            (pycurl.NOPROXY, "" if proxy else "*"),
            # A tunnel even for plain http: each connection then belongs to one host, and the proxy sees no request.
            (pycurl.HTTPPROXYTUNNEL, 1),
            (pycurl.NOSIGNAL, 1),
            (pycurl.DNS_CACHE_TIMEOUT, round(CACHE_SECONDS)),  # also of the addresses that `_pin` sets
            (pycurl.TCP_NODELAY, 1),
            (pycurl.USERAGENT, USER_AGENT),
            (pycurl.OPENSOCKETFUNCTION, self._open_socket),
            (pycurl.PREREQFUNCTION, self._before_send),
            (pycurl.HEADERFUNCTION, self._header_lines.append),
            (pycurl.WRITEFUNCTION, self._on_body),
        ):
            curl.setopt(option, value)
        if ca_file is not None:
            curl.setopt(pycurl.CAINFO, ca_file)
        if method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif method == "POST":
            curl.setopt(pycurl.POST, 1)

    def begin(self, request: Request) -> None:
        """Prepare the handle for a request, setting only the options that differ from the previous one."""
        self.request = request
        self.raised = None
        self._header_lines.clear()
        self._body = b""
        self._received = self._sends = self._errno = 0
        self._cut = self._is_connected = False
        self._blocked = None
        curl = self.curl
        if request.url != self._url:
            curl.setopt(pycurl.URL, request.url)
            self._url = request.url
        if self._proxy:
            resolved = self._resolver.resolve(name_of(request.url))
            via = "" if is_direct(resolved, self._resolver.allowed_networks) else self._proxy
            if via != self._via:
                curl.setopt(pycurl.PROXY, via)
                self._via = via
        known = None if self._via else self._resolver.cached(name_of(request.url))
        origin = "/".join(request.url.split("/", 3)[:3])
        if known and known.addresses and (origin, known) != self._pinned:
            self._pin(origin, known.addresses)
            self._pinned = (origin, known)
        # The empty "Expect:" keeps libcurl from waiting for "100 Continue" before it sends a body above 1 MiB.
        curl.setopt(pycurl.HTTPHEADER, (*request.headers, "Expect:"))
        if request.method == "POST":
            curl.setopt(pycurl.POSTFIELDS, request.body)  # not copied: pycurl keeps a reference
        if request.fresh != self._fresh:
            curl.setopt(pycurl.FRESH_CONNECT, request.fresh)
            self._fresh = request.fresh
        timeouts = (request.connect_timeout, request.timeout)
        if timeouts != self._timeouts:
            # At least 1 ms, because libcurl takes 0 as "no timeout".
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(request.connect_timeout * 1000)))
            curl.setopt(pycurl.TIMEOUT_MS, max(1, round(request.timeout * 1000)))
            self._timeouts = timeouts

    def _pin(self, origin: str, addresses: Sequence[str]) -> None:
        """Make libcurl use these addresses. A few names without an answer would occupy all of its threads for lookups."""
        if not is_address(name_of(origin)):
            self.curl.setopt(pycurl.RESOLVE, [f"+{curl_entry(origin, addresses)}"])

    def finish(self, code: int, text: str) -> Outcome:
        """Return the outcome for libcurl's result code (`E_…`) and error text, and release the request."""
        status, cause = None, None
        if self._cut or code == pycurl.E_OK:
            code, text = _check_head(self._header_lines)
        if code == pycurl.E_OK:
            status = self.curl.getinfo(pycurl.RESPONSE_CODE)
            message = f"The server returned HTTP {status}."
        else:
            cause, message = self._failure(code, text or _TEXTS.get(code, f"libcurl error {code}"))
        outcome = Outcome(
            status=status,
            cause=cause,
            message=message,
            header_lines=tuple(self._header_lines),
            body=bytes(self._body),
            truncated=self._received > len(self._body),
            elapsed=self.curl.getinfo(pycurl.TOTAL_TIME),
            reached=self._sends > 0,
        )
        if len(self.request.body) > _BIG_BODY:
            self.curl.setopt(pycurl.POSTFIELDS, b"")
        self.request, self._body = _NO_REQUEST, b""
        return outcome

    def _open_socket(self, _purpose: int, address: Any) -> int:
        """Return a socket for one candidate address, or SOCKET_BAD, which makes libcurl try the next one.

        One blocked address blocks the whole request, even if libcurl is already connecting to another candidate.
        """
        self._is_connected = False
        try:
            if self._via:  # `address` is the proxy's, which an administrator has chosen
                name = name_of(self.request.url)
                self._blocked = self._blocked or blocked_behind_proxy(name, self._resolver.resolve(name))
            else:
                self._blocked = self._blocked or self._blocked_reason(address.addr[0])
                # `localhost` has two addresses. If only one of them is blocked, the other is used.
                if blocked_reason(address.addr[0], self._resolver.allowed_networks) is not None:
                    return _SOCKET_BAD
            if self._blocked is not None:
                return _SOCKET_BAD
            # Detach it: pycurl would duplicate a socket object, and child processes would inherit the duplicate.
            return socket.socket(address.family, address.socktype, address.protocol).detach()
        except OSError as error:
            self._errno = error.errno or 0
        except BaseException as error:
            self.raised = error
        return _SOCKET_BAD

    def _blocked_reason(self, address: str) -> tuple[Cause, str] | None:
        """Return None if this address and every other address of the host are allowed."""
        name = name_of(self.request.url)
        if not is_loopback_name(name):
            reason = blocked_reason(address, self._resolver.allowed_networks)
            if reason is not None:
                return Cause.REFUSED_ADDRESS, reason
            if self._proxy and not is_in(self._resolver.allowed_networks, address):  # `begin` saw another one
                return Cause.CONNECT, f"{name} now has an address that must be reached through the egress proxy."
        resolved = self._resolver.resolve(name)
        return None if resolved.cause is None else (resolved.cause, resolved.message)

    def _before_send(self, *_connection: object) -> int:
        """Allow the first send. libcurl asks again when it resends the request over another connection."""
        try:
            if self._blocked is not None:
                return _ABORT
            if self.request.can_send is not None and not self.request.can_send():
                self._blocked = self._blocked or (Cause.CONNECT, "The request was not sent in time.")
                return _ABORT
            if self._via:
                self._header_lines.clear()  # the proxy's response to CONNECT
            self._sends += 1
            self._is_connected = True
            return _ABORT if self._sends > 1 and not self.request.repeatable else _PROCEED
        except BaseException as error:  # from a signal handler
            self.raised = error
            return _ABORT

    def _on_body(self, data: bytes) -> int:
        """Keep the first `max_body` bytes, count all, and return 0 to end the transfer after CUT_AFTER bytes."""
        try:
            limit = self.request.max_body
            room = limit - len(self._body)
            if room > 0:
                if self._body and isinstance(self._body, bytes):
                    self._body = bytearray(self._body)  # a large body comes in hundreds of parts
                self._body += data[:room]
            self._received += len(data)
            self._cut = self._received > max(limit, CUT_AFTER)
            return 0 if self._cut else len(data)
        except BaseException as error:
            self.raised = error
            return 0

    def _failure(self, code: int, text: str) -> tuple[Cause, str]:
        """Return cause and message for a request that got no response."""
        if self._blocked is not None:
            return self._blocked
        host = host_of(self.request.url)
        reached = self._sends > 0
        is_not_http = reached and code in _NOT_HTTP
        default = Cause.NETWORK if reached else Cause.CONNECT
        cause = default if is_not_http else _CAUSES.get(code, default)
        detail = clean_text(text, 200)
        if cause is Cause.TIMEOUT:
            return self._timed_out(host)
        if self._via and not reached and cause is not Cause.TLS:
            return Cause.CONNECT, self._proxy_failure(host, code, detail)
        if cause is Cause.CONNECT:
            return cause, f"Couldn't reach {host}: {self._os_error(detail)}."
        if code == pycurl.E_ABORTED_BY_CALLBACK:
            return cause, f"The kept-alive connection to {host} closed before a response arrived."
        if cause is Cause.DNS:
            return cause, f"Couldn't reach {name_of(self.request.url)}: DNS lookup failed."
        if is_not_http:
            return cause, f"{host} didn't send a valid HTTP response: {detail}."
        prefix = {
            Cause.TLS: f"Couldn't establish a secure connection to {host}",
            Cause.NETWORK: f"{host} didn't send a complete response",
            Cause.REFUSED_ADDRESS: "The URL is invalid",
        }[cause]
        return cause, f"{prefix}: {detail}."

    def _proxy_failure(self, host: str, code: int, detail: str) -> str:
        """Return the message for a request that did not get beyond the proxy: was it the proxy or the host behind it?"""
        status = self.curl.getinfo(pycurl.HTTP_CONNECTCODE)
        if status in GATEWAY_ERRORS:
            return f"Couldn't reach {host}: the egress proxy couldn't connect to it (HTTP {status})."
        if status == 407:
            reason = "it requires a valid user name and password (HTTP 407)"
        elif status == 403:
            reason = "it refused to connect (HTTP 403)"
        elif status:
            reason = f"it answered CONNECT with HTTP {status}"
        elif code == pycurl.E_COULDNT_RESOLVE_PROXY:
            reason = "the proxy's name doesn't resolve"
        elif code == pycurl.E_COULDNT_CONNECT:
            reason = f"the proxy can't be reached ({self._os_error(detail)})"
        else:
            reason = self._os_error(detail)
        return f"Couldn't reach {host} {THROUGH_PROXY}: {reason}."

    def _os_error(self, detail: str) -> str:
        """Return the operating system's reason, or `detail` if there is none, to follow a colon."""
        number = self._errno or self.curl.getinfo(pycurl.OS_ERRNO)
        reason = os.strerror(number) if number else detail
        return reason[:1].lower() + reason[1:]

    def _timed_out(self, host: str) -> tuple[Cause, str]:
        connect_timeout, timeout = self._timeouts
        if self._is_connected:
            what = "finish its response" if self._header_lines else "respond"
            return Cause.TIMEOUT, f"{host} didn't {what} within {timeout:g} s."
        seconds = min(connect_timeout, timeout)
        if self._via:
            return Cause.TIMEOUT, f"Couldn't connect to {host} {THROUGH_PROXY} within {seconds:g} s."
        if not self.curl.getinfo(pycurl.NAMELOOKUP_TIME):
            return Cause.DNS, f"Couldn't reach {name_of(self.request.url)}: DNS lookup took longer than {seconds:g} s."
        return Cause.TIMEOUT, f"Couldn't connect to {host} within {seconds:g} s."


def _check_head(header_lines: list[bytes]) -> tuple[int, str]:
    """Return E_OK, or libcurl's code and text for a response whose headers it has accepted although they are not valid.

    libcurl reports success without the empty line after them, but a server that died while sending its headers has
    acknowledged nothing. Trailers of a chunked body may follow that line. It reports 200 for a status line that it can't read.
    """
    starts = [place for place, line in enumerate(header_lines) if line[:5].upper() == b"HTTP/"]
    last = header_lines[starts[-1] :] if starts else []  # interim responses may precede it
    if b"\r\n" not in last and b"\n" not in last:
        return pycurl.E_GOT_NOTHING, ""
    if not _STATUS_LINE.match(last[0]):
        return pycurl.E_UNSUPPORTED_PROTOCOL, "invalid status line"
    return pycurl.E_OK, ""
