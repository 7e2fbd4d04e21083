"""The mail server, as its address says it. Knows no settings, because they are made from it."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from environ import Env


def mail_options(email_url: str) -> dict[str, Any]:
    """Django's options for a mail server such as smtp+tls://user:password@mail.example:587. What is wrong with the
    address is said without a word of it: it holds a password."""
    try:
        url = Env.email_url_config(email_url)
    except (ImproperlyConfigured, ValueError):
        url = {}
    if url.get("EMAIL_BACKEND") != Env.EMAIL_SCHEMES["smtp"] or not url["EMAIL_HOST"]:
        raise ImproperlyConfigured(
            "EMAIL_URL must look like smtp+tls://user:password@mail.example:587, with smtp+ssl for TLS from the beginning "
            "and smtp for none; what is special in user name and password is written as in any URL, @ as %40."
        )
    return {
        "host": url["EMAIL_HOST"],
        "port": url["EMAIL_PORT"],
        "username": url["EMAIL_HOST_USER"],
        "password": url["EMAIL_HOST_PASSWORD"],
        "use_tls": url.get("EMAIL_USE_TLS", False),
        "use_ssl": url.get("EMAIL_USE_SSL", False),
        "timeout": 10,  # seconds for each step of the conversation
    }
