"""Outbound HTTP: the one client, and which addresses it may reach."""

from docora import __version__


def user_agent() -> str:
    return f"Docora/{__version__}"
