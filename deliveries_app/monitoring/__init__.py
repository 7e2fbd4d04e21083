"""Health, metrics, alerts, and the checks behind `manage.py doctor`.

Start with `doctor.py`, which lists every check. `counts.py` has the numbers that pages, commands and metrics share.
"""
