"""Columns that behave the same on PostgreSQL and on SQLite."""

from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    TextField = models.TextField[str, str]
else:
    TextField = models.TextField


class BytewiseTextField(TextField):
    """Text that is compared and ordered by its UTF-8 bytes, as git orders paths.

    That is SQLite's own rule; PostgreSQL is told so by collation `C`, which `db_collation` cannot say here because
    SQLite knows no collation of that name.
    """

    def db_parameters(self, connection: BaseDatabaseWrapper) -> Any:
        parameters = super().db_parameters(connection)
        if connection.vendor == "postgresql":
            parameters["collation"] = "C"
        return parameters
