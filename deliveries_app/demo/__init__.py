"""The demo: git repositories, client apps and users for `manage.py up --demo`."""
