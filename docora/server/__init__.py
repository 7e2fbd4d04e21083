"""The processes that `manage.py up` runs: web server, workers, the embedded Valkey, and the supervisor that starts
and stops them.
"""
