"""Git repositories: their URLs, mirrors and circuits.

Knows nothing about client apps.
"""
