"""Model fields that behave the same on PostgreSQL and SQLite."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    TextField = models.TextField[str, str]
else:
    TextField = models.TextField


class BytewiseTextField(TextField):
    """Text that is compared and ordered by its UTF-8 bytes, as git orders paths.

    SQLite does so by default. PostgreSQL needs the collation `C`, which SQLite does not have, so `db_collation` cannot
    be used.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "postgresql":
            parameters["collation"] = "C"
        return parameters
