"""Health, metrics, alerts, and the checks behind `manage.py doctor`.

Start with `doctor.py`: it lists every check.
"""
