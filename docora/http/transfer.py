"""One libcurl easy handle: its options, its callbacks, and what it makes of the end of a request."""

import os
import socket
from collections.abc import Mapping
from typing import Any, Final

import pycurl

from docora.http.addresses import refusal
from docora.http.messages import AnswerHeaders, Cause, Outcome, Request, host_of, name_of
from docora.http.resolver import Names, is_loopback_name
from docora.text import clean_text

CUT_AFTER: Final = 1024 * 1024  # bytes of an answer's body after which nobody listens any more
_BIG_BODY: Final = 64 * 1024  # bytes; a request's body that is larger is not kept until the handle's next request
_SOCKET_BAD: Final[int] = pycurl.SOCKET_BAD
_GO_ON: Final[int] = pycurl.PREREQFUNC_OK
_ABORT: Final[int] = pycurl.PREREQFUNC_ABORT
_NOTHING: Final = Request("GET", "")

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


class Transfer:
    """An easy handle serves one method for life, so that nothing has to be unset between two requests.

    An exception must not leave a callback: pycurl would print it to stderr and go on. It is kept in `raised`, the
    request is given up, and `HttpClient.poll` raises it.
    """

    request: Request
    raised: BaseException | None
    _header_lines: list[bytes]
    _body: bytes  # of the answer, as much as is kept
    _received: int  # bytes of the answer's body, kept or not
    _cut: bool  # it was too much
    _sends: int  # how often the request was about to be sent over a connection
    _refused: tuple[Cause, str] | None  # why nothing may be sent over the connection that was about to be made
    _errno: int  # why no socket could be opened

    def __init__(self, method: str, names: Names, user_agent: str, ca_file: str | None) -> None:
        self._names = names
        self._header_lines = []
        self._timeouts = (0.0, 0.0)
        self._url = ""
        self.curl = curl = pycurl.Curl()
        for option, value in (
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),  # at least
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.PROXY, ""),  # not the one of the environment either
            (pycurl.NOPROXY, "*"),
            (pycurl.NOSIGNAL, 1),
            (pycurl.TCP_NODELAY, 1),
            (pycurl.USERAGENT, user_agent),
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
        elif method != "GET":
            curl.setopt(pycurl.POST, 1)
            if method != "POST":
                curl.setopt(pycurl.CUSTOMREQUEST, method)

    def begin(self, request: Request) -> None:
        """Set what differs from the request before; the handle is then ready to be driven."""
        self.request = request
        self.raised = None
        self._header_lines.clear()
        self._body = b""
        self._received = self._sends = self._errno = 0
        self._cut = False
        self._refused = None
        curl = self.curl
        if request.url != self._url:
            curl.setopt(pycurl.URL, request.url)
            self._url = request.url
        # Without "Expect:" libcurl would wait for "100 Continue" before it sends a body of more than 1 MiB.
        curl.setopt(pycurl.HTTPHEADER, (*request.headers, "Expect:"))
        if request.method not in ("GET", "HEAD"):
            curl.setopt(pycurl.POSTFIELDS, request.body)  # not copied: pycurl keeps a reference
        timeouts = (request.connect_timeout, request.timeout)
        if timeouts != self._timeouts:
            # At least a millisecond: 0 would mean "for ever" to libcurl.
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, round(request.connect_timeout * 1000)))
            curl.setopt(pycurl.TIMEOUT_MS, max(1, round(request.timeout * 1000)))
            self._timeouts = timeouts

    def finish(self, code: int, text: str) -> Outcome:
        """What libcurl's result (`E_…` and its words) means. The handle then holds nothing of the request any more."""
        status, cause = None, None
        if self._cut or (code == pycurl.E_OK and _has_whole_head(self._header_lines)):
            status = self.curl.getinfo(pycurl.RESPONSE_CODE)
            message = f"The server answered {status}."
        else:
            cause, message = self._failure(code, text or "it ended amid the headers of the answer")
        outcome = Outcome(
            status=status,
            cause=cause,
            message=message,
            headers=AnswerHeaders(self._header_lines),
            body=self._body,
            truncated=self._received > len(self._body),
            elapsed=self.curl.getinfo(pycurl.TOTAL_TIME),
            reached=self._sends > 0,
        )
        if len(self.request.body) > _BIG_BODY:
            self.curl.setopt(pycurl.POSTFIELDS, b"")
        self.request = _NOTHING
        return outcome

    def _open_socket(self, _purpose: int, address: Any) -> int:
        """A socket for one candidate address of the name, or SOCKET_BAD, and libcurl goes on to the next.

        What was refused once stays refused for this request, also if another candidate is being connected to already.
        """
        try:
            self._refused = self._refused or self._why_not(address.addr[0])
            if self._refused is not None or self._is_passed_over(address.addr[0]):
                return _SOCKET_BAD
            # Detached: pycurl would duplicate a socket object, and children started later would inherit the duplicate.
            return socket.socket(address.family, address.socktype, address.protocol).detach()
        except OSError as error:
            self._errno = error.errno or 0
        except BaseException as error:
            self.raised = error
        return _SOCKET_BAD

    def _why_not(self, address: str) -> tuple[Cause, str] | None:
        """None if this address, and every other one of the name, may be dialled."""
        name = name_of(self.request.url)
        sentence = None if is_loopback_name(name) else refusal(address, self._names.allowed_networks)
        if sentence is not None:
            return Cause.REFUSED_ADDRESS, sentence
        vetted = self._names.vet(name)
        return None if vetted.cause is None else (vetted.cause, vetted.message)

    def _is_passed_over(self, address: str) -> bool:
        """Not dialled, and no reason to refuse the name: the other family of `localhost`."""
        return refusal(address, self._names.allowed_networks) is not None

    def _before_send(self, *_connection: object) -> int:
        """Asked once for every send; the second is libcurl repeating the request over another connection."""
        try:
            if self._refused is not None:
                return _ABORT
            self._sends += 1
            return _ABORT if self._sends > 1 and not self.request.repeatable else _GO_ON
        except BaseException as error:  # of a signal handler
            self.raised = error
            return _ABORT

    def _on_body(self, data: bytes) -> int:
        """Keep the beginning, count the rest, and end the transfer (by accepting nothing) when it is too much."""
        try:
            limit = self.request.max_body
            room = limit - len(self._body)
            if room > 0:
                self._body += data[:room]
            self._received += len(data)
            self._cut = self._received > max(limit, CUT_AFTER)
            return 0 if self._cut else len(data)
        except BaseException as error:
            self.raised = error
            return 0

    def _failure(self, code: int, text: str) -> tuple[Cause, str]:
        """The cause, and the sentence for a person, of a request that got no answer."""
        if self._refused is not None:
            return self._refused
        host = host_of(self.request.url)
        reached = self._sends > 0
        cause = _CAUSES.get(code, Cause.NETWORK if reached else Cause.CONNECT)
        words = clean_text(text, 200)
        if cause is Cause.TIMEOUT:
            return self._timed_out(host, reached)
        if cause is Cause.CONNECT:
            number = self._errno or self.curl.getinfo(pycurl.OS_ERRNO)
            return cause, f"No connection to {host}: {os.strerror(number) if number else words}."
        if code == pycurl.E_ABORTED_BY_CALLBACK:
            return cause, f"The connection to {host}, kept from an earlier request, broke before an answer came."
        if cause is Cause.DNS:
            return cause, f"The name {name_of(self.request.url)} could not be resolved."
        prefix = {
            Cause.TLS: f"No trustworthy TLS connection to {host}",
            Cause.NETWORK: f"The connection to {host} broke",
            Cause.REFUSED_ADDRESS: "The URL was not accepted",
        }[cause]
        return cause, f"{prefix}: {words}."

    def _timed_out(self, host: str, reached: bool) -> tuple[Cause, str]:
        connect_timeout, timeout = self._timeouts
        if reached:
            return Cause.TIMEOUT, f"{host} did not answer within {timeout:g} s."
        seconds = min(connect_timeout, timeout)
        if not self.curl.getinfo(pycurl.NAMELOOKUP_TIME):
            return Cause.DNS, f"The name {name_of(self.request.url)} could not be resolved within {seconds:g} s."
        return Cause.TIMEOUT, f"No connection to {host} was made within {seconds:g} s."


def _has_whole_head(header_lines: list[bytes]) -> bool:
    """Whether an empty line came after the last status line. libcurl is content without, but a server that died amid its
    headers has acknowledged nothing. (Other lines may follow: the trailers of a chunked body.)"""
    for line in reversed(header_lines):
        if line in (b"\r\n", b"\n"):
            return True
        if line.startswith(b"HTTP/"):
            return False
    return False
