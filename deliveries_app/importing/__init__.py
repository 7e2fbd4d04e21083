"""Moving over from the existing service: what its database knows becomes rows of Docora's, so that no client has to do
anything and no file is sent again.

`source` reads that database, `decryption` opens its secrets, `judging` says what Docora can take, `rows` and `records`
write, `moving` goes through all of it, and `report` keeps what was taken and what was not.

What is there already is left alone, so an import that was interrupted is simply started again. What was taken once and is
not there any more has been removed since, and stays so. A watch is written before its delivery records and is `arriving`
until the last of them is there: nothing is checked or sent before that.
"""

from deliveries_app.importing.run import move_over
from deliveries_app.importing.source import Source, SourceError, SourceKey, WrongKey, open_source

__all__ = ["Source", "SourceError", "SourceKey", "WrongKey", "move_over", "open_source"]
