"""Databases of earlier versions are upgraded without losing anything.

`sqlite.sql` and `postgresql.sql` are dumps of the schema of 0.1.0 as it was before its migrations were squashed, with
rows in every table. `make_dumps.py` wrote them and defines the keys and contents that the tests compare with. Never
regenerate them from a later schema: they represent the databases of that version.
"""
