"""Decide which files to create, update and delete.

Start reading in `planner.py`, which builds the plan for a commit. This package reads the mirror and the delivery rows;
it sends and records nothing.
"""
