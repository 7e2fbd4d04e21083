"""Read-only queries behind pages, commands and the API. Start in `overview.py`, the first page of the admin."""
