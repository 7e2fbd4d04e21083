"""Decide which files to create, update and delete.

`planner.py` builds the plan for a commit; start there. Nothing here sends or records anything.
"""
