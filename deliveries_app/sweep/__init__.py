"""The periodic loop: check repositories for changes, enqueue what is due, clean up, and delete old history.

Start in `loop.py`.
"""
