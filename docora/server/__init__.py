"""The processes that `manage.py up` runs: the web server, workers and embedded Valkey, and their supervisor."""
