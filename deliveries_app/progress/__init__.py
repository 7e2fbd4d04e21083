"""Sync runs and their live counters.

`runs.py` writes the rows. `live.py` keeps and reads the numbers behind progress bars, `activity.py` says what an unfinished
sync is doing or waiting for, and `context.py` prepares both for templates.
"""
