"""Commands that need no app: they start processes, migrate the database, re-encrypt secrets and create sign-in links."""
