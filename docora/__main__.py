"""`python -m docora …` does the same as `docora …`, and as `manage.py …` in a checkout."""

from docora.cli.main import main

if __name__ == "__main__":
    main()
