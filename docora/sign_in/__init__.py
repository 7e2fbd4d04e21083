"""Signing in: django-allauth with Docora's rules, and the parts that allauth lacks.

Start with `adapters`, which has the rules. `recency` asks for a fresh sign-in before sensitive changes.
"""
