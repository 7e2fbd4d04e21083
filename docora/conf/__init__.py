"""The sources of settings: the environment, `.env` and the data directory.

Used by `docora/settings.py`. Nothing else reads settings from the environment, except build information and the secrets that
an import asks for.
"""
