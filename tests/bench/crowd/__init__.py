"""Made-up rows as many as a large installation has: thousands of apps, millions of deliveries.

`layout` draws who drawings what and in which state, `tables` makes the rows of that, `deliveries` and `history` stream what
was sent and what happened, `loading` writes the rows. The same seed makes the same rows, except for times and ciphertexts.

Nothing of it is ever fetched or sent: every next time lies a year ahead, and all addresses end in `.example`.
`python -m tests.bench.crowd` fills the database that the settings name.
"""
