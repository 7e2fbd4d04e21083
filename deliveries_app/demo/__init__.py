"""The demo: git repositories, a client app and users for `manage.py up --demo`."""
