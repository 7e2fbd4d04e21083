"""Sync runs and their live counters.

`runs.py` writes the rows, `live.py` reads the numbers behind a progress bar, `context.py` prepares them for
templates.
"""
