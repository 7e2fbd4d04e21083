"""Parse the address of the mail server. Does not depend on the settings."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from environ import Env


def mail_options(email_url: str) -> dict[str, Any]:
    """Return Django's options for a mail server URL such as smtp+tls://user:password@mail.example:587.

    Raises ImproperlyConfigured if the URL is invalid. The message does not repeat it, because it holds a password.
    """
    try:
        url = Env.email_url_config(email_url)
    except (ImproperlyConfigured, ValueError):
        url = {}
    if url.get("EMAIL_BACKEND") != Env.EMAIL_SCHEMES["smtp"] or not url["EMAIL_HOST"]:
        raise ImproperlyConfigured(
            "EMAIL_URL must look like smtp+tls://user:password@mail.example:587. Use smtp+ssl for implicit TLS and "
            "smtp for none. Percent-encode special characters in user name and password, such as @ as %40."
        )
    return {
        "host": url["EMAIL_HOST"],
        "port": url["EMAIL_PORT"],
        "username": url["EMAIL_HOST_USER"],
        "password": url["EMAIL_HOST_PASSWORD"],
        "use_tls": url.get("EMAIL_USE_TLS", False),
        "use_ssl": url.get("EMAIL_USE_SSL", False),
        "timeout": 10,  # seconds for each network operation
    }
