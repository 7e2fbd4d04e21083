"""Encryption of stored secrets, redaction, permissions and throttling."""
