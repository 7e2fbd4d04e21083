"""`python -m docora …` is `docora …`, or `manage.py …` in a checkout."""

from docora.cli.main import main

if __name__ == "__main__":
    main()
