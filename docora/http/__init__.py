"""Outbound HTTP: the client and the rules for the addresses it may connect to."""

from docora import __version__

USER_AGENT = f"Docora/{__version__}"
