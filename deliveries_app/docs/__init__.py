"""The documentation at `/docs/`: handbook, webhook and API references.

Its examples come from the code that sends them.
"""
