"""A crowd: thousands of apps and millions of rows for `manage.py generate_data`, to see how Docora does at that size.

`layout` draws who drawings what and how it stands, `tables` makes the rows of that, `deliveries` and `history` stream what
was sent and what happened, `loading` writes them. One seed makes the same crowd on every machine, but for the moment that
it is made at and for ciphertexts.

Nothing of it is ever fetched or sent: every next time lies `RESTS` ahead, and all addresses end in `.example`.
"""
