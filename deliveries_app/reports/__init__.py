"""Read-only queries behind pages, commands and the API."""
