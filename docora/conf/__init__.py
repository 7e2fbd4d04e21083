"""Where settings come from: the environment, `.env` and the data directory.

`docora/settings.py` uses these modules; nothing else reads the environment.
"""
