"""Generate the rows of a large installation: thousands of apps, millions of deliveries.

`layout` draws who watches what and in which state. `tables` makes the apps, repositories and watches, `deliveries` the
delivery records, and `history` the runs and operations. `loading` writes rows in bulk. The same seed makes the same rows,
except for times and ciphertexts.

Nothing is ever fetched or sent: every next attempt is more than an hour ahead, and all addresses end in `.example`.
`python -m tests.bench.crowd` fills the database in the settings.
"""
