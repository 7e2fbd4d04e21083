"""Import the rows of the existing Node service, so that no client has to change anything and no file is sent again.

An import skips rows that are already here, so an interrupted import can be started again. Rows that were imported before
and have been removed since stay removed. A watch is created before its delivery records and is `arriving` until the last
record is stored; until then it is neither checked nor synced.
"""
