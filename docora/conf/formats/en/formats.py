"""Formats that differ from Django's own: `settings.FORMAT_MODULE_PATH`."""

DATETIME_FORMAT = "Y-m-d H:i:s T"
