"""Client apps, the repositories they watch, and every delivery.

Imports inside this app only point down; CONTRIBUTING.md has the levels.
"""
