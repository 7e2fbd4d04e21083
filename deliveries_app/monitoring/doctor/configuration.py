"""Settings that bite, Django's own checks, and whether anybody can sign in."""

from collections.abc import Iterator
from ipaddress import ip_address

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import checks

from deliveries_app.monitoring.doctor.findings import Finding, fine, problem, warning
from docora.conf.installation import program
from docora.http.addresses import Network

_METADATA = [ip_address(address) for address in ("169.254.169.254", "168.63.129.16", "fd00:ec2::254")]
_LOOPBACK = [ip_address(address) for address in ("127.0.0.1", "::1")]
_WIDE = {4: 16, 6: 48}  # a network with a shorter prefix is more than a site
_SAID_HERE = {"security.W009", "security.W018", "docora.E001", "docora.E002"}
"""What Django's checks say that an examination says better: keys, DEBUG, git."""
_FOLLOW_FROM_HTTP = {"security.W004", "security.W008", "security.W012", "security.W016"}


def what_bites() -> Iterator[Finding]:
    found = [*_public_address(), *_private_networks()]
    if settings.DEBUG:
        found.append(
            problem("DEBUG is on: whoever causes an error sees the code around it.", "Remove DEBUG, and restart.")
        )
    if settings.ALLOW_HTTP:
        found.append(
            warning(
                "ALLOW_HTTP is on: files and the tokens of private repositories may travel in the clear.",
                "Remove it unless all of it stays in a network that you trust.",
            )
        )
    yield from found or [fine("The settings hold nothing that is known to bite.")]


def _public_address() -> Iterator[Finding]:
    if not settings.HTTPS:
        yield warning(
            f"PUBLIC_URL is {settings.PUBLIC_URL}, plain http: Docora is for this machine only, without Secure cookies, "
            "the redirect to https and HSTS.",
            "Set PUBLIC_URL to the https address that people and client apps type.",
        )
    elif not settings.TRUSTED_PROXIES:
        yield problem(
            "PUBLIC_URL is https, but TRUSTED_PROXIES is empty: Docora believes no proxy that a request came over https, "
            "and redirects every request for ever.",
            "Set TRUSTED_PROXIES to the address of the reverse proxy, such as 127.0.0.1/32.",
        )
    if any(network.prefixlen == 0 for network in settings.TRUSTED_PROXIES):
        yield problem(
            "TRUSTED_PROXIES is everybody: any client can say which address it comes from, and is never throttled.",
            "Name the reverse proxy alone.",
        )


def _private_networks() -> Iterator[Finding]:
    for network in settings.ALLOWED_PRIVATE_NETWORKS:
        if any(address in network for address in _METADATA):
            yield problem(
                f"ALLOWED_PRIVATE_NETWORKS has {network}, in which clouds hand out the machine's credentials: whoever "
                "registers an app or a repository could have Docora call there.",
                "Name the networks of your apps and git hosts, as narrow as they are.",
            )
        elif any(address in network for address in _LOOPBACK):
            yield warning(
                f"ALLOWED_PRIVATE_NETWORKS has {network}: outbound calls reach every service on this machine.",
                "Remove it, unless apps or git hosts run here.",
            )
        elif _is_wide(network):
            yield warning(
                f"ALLOWED_PRIVATE_NETWORKS has {network}, which is wide: outbound calls reach all of it.",
                "Name the networks of your apps and git hosts, as narrow as they are.",
            )


def _is_wide(network: Network) -> bool:
    return network.prefixlen < _WIDE[network.version]


def django_checks() -> Iterator[Finding]:
    """`check --deploy`, without what is said elsewhere."""
    quiet = _SAID_HERE if settings.HTTPS else _SAID_HERE | _FOLLOW_FROM_HTTP
    told = [
        message
        for message in checks.run_checks(include_deployment_checks=True)
        if message.level >= checks.WARNING and message.id not in quiet and not message.is_silenced()
    ]
    for message in told:
        found = problem if message.level >= checks.ERROR else warning
        yield found(f"{message.msg} ({message.id})", message.hint or "")
    if not told:
        yield fine(f"Django's own checks ({program()} check --deploy) find nothing more.")


def people() -> Iterator[Finding]:
    active = get_user_model()._default_manager.filter(is_active=True)
    if active.filter(is_superuser=True, is_staff=True).exists():
        yield fine("There is an administrator who can sign in.")
    elif active.filter(is_staff=True).exists():
        yield warning(
            "There is no superuser: nobody can manage users, delete an app or unlock sign-ins.",
            f"Make one: {program()} createsuperuser",
        )
    else:
        yield warning("Nobody can sign in.", f"Make an administrator: {program()} createsuperuser")
