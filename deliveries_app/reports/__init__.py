"""Read-only queries behind pages, commands and metrics."""
