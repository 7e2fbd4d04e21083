"""`python -m docora …` is `manage.py …`."""

from docora.commandline import main

if __name__ == "__main__":
    main()
