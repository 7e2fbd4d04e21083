"""The project, and a small library that knows no model of the apps. Start in `settings.py`."""

__version__ = "1.0.0"
