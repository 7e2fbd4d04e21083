#!/usr/bin/env python
"""Docora's command line: `manage.py help` lists the commands."""

if __name__ == "__main__":
    try:
        from docora.cli.main import main

        main()
    except KeyboardInterrupt:  # during the imports
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}. Run `make setup`, then use .venv/bin/python.") from None
