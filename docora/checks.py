"""System checks of the settings. `manage.py check --deploy` and `manage.py doctor` run them."""

from datetime import timedelta
from ipaddress import ip_address
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.utils import timezone

from docora.conf.data_dir import MAKE_KEY, is_weak_secret_key, max_entropy_bits
from docora.conf.installation import program
from docora.http.addresses import Network

_METADATA = [ip_address(address) for address in ("169.254.169.254", "168.63.129.16", "fd00:ec2::254")]
_LOOPBACK = [ip_address(address) for address in ("127.0.0.1", "::1")]
_SHORTEST_PREFIX = {4: 16, 6: 48}
"""Maps the IP version to a prefix length. A network with a shorter prefix is larger than one site."""
_ENCRYPTION_KEY_BITS = 60
_EXPIRES_SOON_DAYS = 30


@register(Tags.security, deploy=True)
def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    if settings.DEBUG:
        text = "DEBUG is on, so error pages show source code and settings to everyone."
        messages.append(Error(text, hint="Turn DEBUG off and restart.", id="docora.E003"))
    if not settings.HTTPS:
        text = (
            f"PUBLIC_URL is {settings.PUBLIC_URL}, which uses plain http. Docora serves this machine only, without Secure "
            "cookies, redirects to https, or HSTS."
        )
        hint = "Set PUBLIC_URL to the https address that people and client apps use."
        messages.append(Warning(text, hint=hint, id="docora.W001"))
    if settings.ALLOW_HTTP:
        text = "ALLOW_HTTP is on, so files and repository tokens may be sent unencrypted."
        hint = "Turn it off unless this traffic stays in a trusted network."
        messages.append(Warning(text, hint=hint, id="docora.W002"))
    return messages


@register(Tags.security, deploy=True)
def check_security_txt(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Warn if /.well-known/security.txt expires soon. Readers ignore an expired file."""
    expires = settings.SECURITY_CONTACTS_EXPIRE_ON
    if (
        not settings.SECURITY_CONTACTS
        or expires is None
        or expires > timezone.now().date() + timedelta(days=_EXPIRES_SOON_DAYS)
    ):
        return []
    text = f"/.well-known/security.txt expires on {expires}. After that, readers ignore it."
    hint = "Check SECURITY_CONTACTS, and set SECURITY_CONTACTS_EXPIRE_ON to a date within a year."
    return [Warning(text, hint=hint, id="docora.W005")]


def check_proxies() -> list[CheckMessage]:
    """Check TRUSTED_PROXIES. Only `doctor` runs this: an image is checked before its proxy is known."""
    if settings.HTTPS and not settings.TRUSTED_PROXIES:
        text = (
            "PUBLIC_URL is https, but TRUSTED_PROXIES is empty. Docora doesn't trust the reverse proxy's X-Forwarded-Proto "
            "header, so it redirects every request to https in a loop."
        )
        hint = "Set TRUSTED_PROXIES to the address of the reverse proxy, such as 127.0.0.1/32."
        return [Error(text, hint=hint, id="docora.E004")]
    if any(network.prefixlen == 0 for network in settings.TRUSTED_PROXIES):
        text = "TRUSTED_PROXIES contains every address, so a client can fake its address and avoid throttling."
        return [Error(text, hint="List only your reverse proxy.", id="docora.E005")]
    return []


@register(Tags.security, deploy=True)
def check_private_networks(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    return [message for network in settings.ALLOWED_PRIVATE_NETWORKS for message in _check_private_network(network)]


def _check_private_network(network: Network) -> list[CheckMessage]:
    narrow = "List only the networks of your apps and git hosts."
    if any(address in network for address in _METADATA):
        text = (
            f"ALLOWED_PRIVATE_NETWORKS contains {network}, which includes cloud metadata services with server credentials. "
            "Anyone who registers an app or a repository can make Docora connect to them."
        )
        return [Error(text, hint=narrow, id="docora.E006")]
    if any(address in network for address in _LOOPBACK):
        text = f"ALLOWED_PRIVATE_NETWORKS contains {network}, so Docora can connect to every service on this machine."
        return [Warning(text, hint="Remove it unless apps or git hosts run on this machine.", id="docora.W003")]
    if network.prefixlen < _SHORTEST_PREFIX[network.version]:
        text = f"ALLOWED_PRIVATE_NETWORKS contains the large network {network}, so Docora can connect to all of it."
        return [Warning(text, hint=narrow, id="docora.W004")]
    return []


@register(Tags.security, deploy=True)
def check_keys(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    if is_weak_secret_key(settings.SECRET_KEY):
        text = "SECRET_KEY is short or repetitive, so sessions signed with it can be forged."
        messages.append(Error(text, hint=f"Generate one: {MAKE_KEY}", id="docora.E007"))
    for place, key in enumerate(settings.ENCRYPTION_KEYS, 1):
        if max_entropy_bits(key) < _ENCRYPTION_KEY_BITS:
            text = f"Key {place} in ENCRYPTION_KEYS is short or repetitive, so anyone with the database can guess it."
            hint = f"Generate one ({MAKE_KEY}), put it first, and run {program()} rotate_encryption_keys."
            messages.append(Error(text, hint=hint, id="docora.E008"))
    return messages
