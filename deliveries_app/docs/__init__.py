"""The public documentation at `/docs/`: start page, webhook reference, API reference and operations handbook.

Start reading in `views.py`. The examples are produced by the code that sends real notifications.
"""
