"""The way out: the one client refuses what it must, and reaches what it has to."""

from collections.abc import Iterator

from django.conf import settings

from deliveries_app.monitoring.doctor.findings import Finding, fine, problem, warning
from docora.http.addresses import refusal
from docora.http.client import Cause, HttpClient, Request
from docora.http.messages import name_of
from docora.http.resolver import vet
from repositories_app.git.remote import new_client

_FORBIDDEN = {
    "127.0.0.1": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "localhost": "127.0.0.1",
    "[::1]": "::1",
    "[::ffff:127.0.0.1]": "127.0.0.1",
    "10.0.0.1": "10.0.0.1",
    "169.254.1.1": "169.254.1.1",
    "169.254.169.254": "169.254.169.254",
    "[fd00:ec2::254]": "fd00:ec2::254",
}
"""Loopback, private, link-local and the metadata services of clouds, as a URL may spell them → the address that it is."""
_LOOKUP_SECONDS = 5.0


def addresses() -> Iterator[Finding]:
    """Ask the client for addresses that nobody allowed. A refused one is never dialled, so none of this leaves the machine."""
    networks = settings.ALLOWED_PRIVATE_NETWORKS
    spellings = [spelled for spelled, address in _FORBIDDEN.items() if refusal(address, networks)]
    with new_client(max_connections=1) as client:
        dialled = [spelled for spelled in spellings if not _is_refused(client, spelled)]
    if dialled:
        yield problem(
            f"The outbound client does not refuse {', '.join(dialled)}: whoever registers an app or a repository could "
            "have Docora call there.",
            "Stop Docora, and please report it.",
        )
    elif spellings:
        yield fine(f"The outbound client refuses {', '.join(spellings)}.")
    else:
        yield warning(
            "ALLOWED_PRIVATE_NETWORKS lets the outbound client call every private address.", "Make it narrower."
        )


def _is_refused(client: HttpClient, host: str) -> bool:
    """Not called, that is: a name or notation that nobody resolves here (`Cause.DNS`) leads nowhere either."""
    outcome = client.request(Request("HEAD", f"https://{host}/", connect_timeout=1.0, timeout=1.0))
    return outcome.cause in {Cause.REFUSED_ADDRESS, Cause.DNS}


def git_host() -> Iterator[Finding]:
    """Does the name of the first allowed git host resolve, and does it answer? Which repositories there are on it is not
    known, so any answer will do."""
    if not settings.ALLOWED_GIT_HOSTS:
        yield problem("ALLOWED_GIT_HOSTS is empty: no repository can be watched.", "Name the git host, as github.com.")
        return
    host = _authority(settings.ALLOWED_GIT_HOSTS[0])
    vetted = vet(name_of(f"https://{host}/"), settings.ALLOWED_PRIVATE_NETWORKS, _LOOKUP_SECONDS)
    if vetted.cause is Cause.DNS:
        yield problem(vetted.message, "Check the spelling in ALLOWED_GIT_HOSTS, and the DNS of this machine.")
        return
    schemes = ("https", "http") if settings.ALLOW_HTTP else ("https",)
    messages = []
    with new_client(max_connections=1) as client:
        for scheme in schemes:
            outcome = client.request(Request("HEAD", f"{scheme}://{host}/", connect_timeout=5.0, timeout=8.0))
            if outcome.status is not None:
                yield fine(
                    f"The git host {host} resolves and answers over {scheme} in {outcome.elapsed * 1000:.0f} ms."
                )
                return
            messages.append(outcome.message)
    advice = {
        Cause.REFUSED_ADDRESS: "If that is where your git host is, add its network to ALLOWED_PRIVATE_NETWORKS.",
        Cause.TLS: "Check the host's certificate, and the certificate authorities of this machine (ca-certificates).",
    }
    yield problem(
        f"The git host {host} cannot be reached. {messages[0]}",
        advice.get(outcome.cause, "Check the firewall: Docora uses no proxy.") if outcome.cause else "",
    )


def _authority(entry: str) -> str:
    """An entry of ALLOWED_GIT_HOSTS as it stands in a URL: an IPv6 address may be written without brackets there."""
    return f"[{entry}]" if entry.count(":") > 1 and not entry.startswith("[") else entry
