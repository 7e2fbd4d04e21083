"""One sync of one watch. Start in `attempt.py`; `engine.md` explains the rules."""
