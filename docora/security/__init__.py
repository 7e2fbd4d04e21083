"""Encryption of stored secrets, redaction, throttling and sign-in limits."""
