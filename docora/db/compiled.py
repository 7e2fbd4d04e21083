"""Queries whose SQL is built once.

Django rebuilds a query's SQL each time it runs. For a query with several conditions, this takes ten times as long as sending it
and reading its rows.

The first call builds the queryset with an `_Argument` in place of each value, and compiles it to SQL with placeholders. From
then on, the queryset's compiler is a `_Compiler`, which returns that SQL, and each call only binds its values to it.
"""

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property, update_wrapper
from typing import Any
from weakref import WeakSet

from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Expression, QuerySet, prefetch_related_objects
from django.db.models.sql import UpdateQuery
from django.db.models.sql.compiler import SQLCompiler

from docora.db.prepared import prepared

_MAX_UPDATES = 100
_queries: "WeakSet[Compiled[..., Any]]" = WeakSet()


class _Argument(Expression):
    """A placeholder for a value that each call provides."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Any:
        return "%s", [self]


@dataclass(frozen=True)
class _Statement:
    sql: str
    parameters: Sequence[Any]

    @cached_property
    def quoted(self) -> "_Statement":
        """The statement to execute. Needs a connection.

        On PostgreSQL, constants become part of the SQL, because psycopg would quote them in Python at each execution.
        """
        if connection.vendor != "postgresql":
            return self
        operations: Any = connection.ops
        arguments = [value for value in self.parameters if isinstance(value, _Argument)]
        values = [
            "%s" if isinstance(value, _Argument) else operations.compose_sql("%s", [value]).replace("%", "%%")
            for value in self.parameters
        ]
        return _Statement(self.sql.replace("%%", "%%%%") % tuple(values), arguments)

    def bind(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the parameters, with these values instead of the arguments of the same names."""
        return tuple(values[value.name] if isinstance(value, _Argument) else value for value in self.parameters)


class _Compiler(threading.local):
    """A copy of a compiler that executes `statement`. Each thread has its own copy, with its own connection."""

    statement: tuple[str, Sequence[Any]]

    def __init__(self, template: SQLCompiler, using: str) -> None:
        """Runs again in each thread, at its first access."""
        compiler: Any = copy(template)
        compiler.connection = connections[using]
        converters = compiler.get_converters([column for column, *_ in compiler.select[: compiler.col_count]])
        compiler.get_converters = lambda _: converters
        compiler.as_sql = lambda *_, **__: self.statement
        self.compiler = compiler


@cache
def _unopened(using: str) -> BaseDatabaseWrapper:
    """Return a connection that is only used to compile queries.

    Django compiles a query that locks rows only in a transaction. Here, each call checks that instead.
    """
    unopened = connections[using].copy()
    unopened.get_autocommit = lambda: False  # type: ignore[method-assign]
    return unopened


class Compiled[**P, Row]:
    """A queryset whose SQL is built once. Create it with `compiled` or `compiled_and_prepared`."""

    def __init__(self, build: Callable[P, QuerySet[Any, Row]], *, is_prepared: bool = False) -> None:
        self._build: Callable[..., QuerySet[Any, Row]] = build
        self._is_prepared = is_prepared
        self._arguments = {name: _Argument(name) for name in inspect.signature(build).parameters}
        self._select: tuple[Any, _Compiler, _Statement] | None = None
        self._updates: dict[Any, tuple[_Statement, dict[str, Any]]] = {}
        update_wrapper(self, build)
        _queries.add(self)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> list[Row]:
        """Return the rows."""
        select, compiler, statement = self.compile()
        # Django checks this when it compiles the query.
        locks = select.query.select_for_update and connection.features.has_select_for_update
        if locks and connection.get_autocommit():
            raise transaction.TransactionManagementError(f"{self} locks rows, which needs a transaction.")
        statement = statement.quoted
        with self._prepared(statement.sql) as sql:
            compiler.statement = sql, statement.bind(self._values(arguments, named))
            # What `list(select.all())` does, without its copy of the query.
            rows: list[Any] = list(select._iterable_class(select))
        prefetch_related_objects(rows, *select._prefetch_related_lookups)
        return rows

    def update(self, *arguments: Any, **changes: Any) -> int:
        """Change the rows as `QuerySet.update` does, and return their number. Pass the arguments by position.

        Updates of the same columns share their SQL, unless one of them sets a column to another expression.
        """
        key = tuple((name, value if _is_expression(value) else None) for name, value in changes.items())
        known = self._updates.get(key)
        if known is None:
            if len(self._updates) >= _MAX_UPDATES:
                self._updates = {}
            known = self._updates[key] = self._compile_update(changes)
        statement, fields = known
        new = {f"new {name}": field.get_db_prep_save(changes[name], connection) for name, field in fields.items()}
        with (
            transaction.mark_for_rollback_on_error(),
            self._prepared(statement.sql) as sql,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql, statement.bind(self._values(arguments, {}) | new))
            return int(cursor.rowcount)

    def _prepared(self, sql: str) -> AbstractContextManager[str]:
        """Return a context with the SQL to execute."""
        return prepared(repr(self), sql) if self._is_prepared else nullcontext(sql)

    def _values(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {**dict(zip(self._arguments, arguments, strict=False)), **named}
        if len(arguments) + len(named) != len(self._arguments) or values.keys() != self._arguments.keys():
            raise TypeError(f"{self} takes the arguments {', '.join(self._arguments)}.")
        return values

    def compile(self) -> tuple[Any, _Compiler, _Statement]:
        """Return the queryset that reads the rows, its compiler and the SQL.

        The first call builds them. Needs no connection to the database.
        """
        if self._select is None:
            queryset: Any = self._build(**self._arguments)
            template = queryset.query.get_compiler(connection=_unopened(queryset.db))
            statement = _Statement(*template.as_sql())
            compiler = _Compiler(template, queryset.db)
            queryset.query.get_compiler = lambda *_, **__: compiler.compiler
            self._select = queryset, compiler, statement
        return self._select

    def _compile_update(self, changes: Mapping[str, Any]) -> tuple[_Statement, dict[str, Any]]:
        """Return the statement, and the field of each column that it does not set to an expression."""
        queryset = self._build(**self._arguments)
        model = queryset.model._meta
        fields = {name: model.get_field(name) for name, value in changes.items() if not _is_expression(value)}
        if queryset.query.is_sliced or queryset.query.combinator:
            raise TypeError(f"{self} has a limit or is a union, so its rows cannot be updated.")
        query: Any = queryset.query.chain(UpdateQuery)
        query.add_update_values({**changes, **{name: _Argument(f"new {name}") for name in fields}})
        return _Statement(*query.get_compiler(queryset.db).as_sql()).quoted, fields

    def __repr__(self) -> str:
        return f"{self._build.__module__}.{self._build.__qualname__}"


def compile_all() -> None:
    """Compile the queries of all imported modules, so that forked processes don't have to."""
    for query in list(_queries):
        query.compile()


def compiled[**P, Row](build: Callable[P, QuerySet[Any, Row]]) -> Compiled[P, Row]:
    """Decorate a function that returns a queryset. A call then returns the rows, and only the first one compiles the query.

    The arguments must be integers or strings that the query compares with columns. Nothing else may differ between calls;
    settings are read once.
    """
    return Compiled(build)


def compiled_and_prepared[**P, Row](build: Callable[P, QuerySet[Any, Row]]) -> Compiled[P, Row]:
    """Decorate a function as `compiled` does, and let PostgreSQL plan the query only once for each connection.

    Use this only for a query that finds its rows through indexes, whatever the sizes of the tables (`docora.db.prepared`).
    """
    return Compiled(build, is_prepared=True)


def _is_expression(value: object) -> bool:
    return hasattr(value, "resolve_expression")
