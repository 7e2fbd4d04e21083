"""Outbound HTTP: the client and the rules for the addresses it may connect to."""

from docora import __version__


def user_agent() -> str:
    return f"Docora/{__version__}"
