"""The public documentation at `/docs/`: quick start, references for webhooks and API, changes, and operations handbook.

Start reading in `views.py`. The examples are produced by the code that sends real notifications.
"""
