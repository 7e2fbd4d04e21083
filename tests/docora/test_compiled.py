"""A compiled query returns and changes the same rows as the queryset, and Django builds its SQL once."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import IntegrityError, connection, transaction
from django.db.models import BooleanField, Case, F, IntegerField, QuerySet, Value, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Concat
from django.test.utils import CaptureQueriesContext

from docora.db.compiled import Compiled, compiled
from tests.support.environment import setting_names
from tests.support.processes import in_threads

AWKWARD = ["ann", "100%s", "%", "'; DROP TABLE auth_user; --", "größe", ""]


@pytest.fixture
def users(db: None) -> list[User]:
    return [User.objects.create(username=f"user {number}", first_name=name) for number, name in enumerate(AWKWARD)]


@pytest.fixture
def built() -> list[Any]:
    """The arguments of each call of the decorated functions."""
    return []


def user_query(built: list[Any]) -> Compiled[[int], User]:
    @compiled
    def query(user_pk: int) -> QuerySet[User]:
        built.append(user_pk)
        return User.objects.filter(pk=user_pk, email="")

    return query


def test_rows_of_different_arguments(users: list[User], built: list[Any]) -> None:
    query = user_query(built)
    assert [query(user.pk) for user in users] == [[user] for user in users]
    assert query(-1) == []
    assert len(built) == 1


@pytest.mark.parametrize("name", AWKWARD)
def test_strings_are_passed_as_values(users: list[User], name: str) -> None:
    @compiled
    def query(first_name: str) -> QuerySet[User]:
        return User.objects.filter(first_name=first_name).exclude(last_name="50%")

    assert query("unknown") == []
    assert [user.first_name for user in query(name)] == [name]


@pytest.mark.parametrize("name", AWKWARD)
def test_constants_are_passed_as_values(users: list[User], name: str) -> None:
    @compiled
    def query(lowest: int) -> "QuerySet[User, tuple[str, str, int]]":
        rows = User.objects.filter(
            RawSQL("username LIKE 'user%%' AND first_name = %s", [name], BooleanField()), pk__gte=lowest
        )
        return rows.annotate(name=Value(name), none=Value(None, IntegerField())).values_list(
            "first_name", "name", "none"
        )

    assert query(0) == query(users[0].pk) == [(name, name, None)]
    assert query(users[-1].pk + 1) == []
    assert query.update(0, last_name=Concat(F("first_name"), Value(name))) == 1
    assert User.objects.get(first_name=name).last_name == name + name


@pytest.mark.skipif(connection.vendor != "postgresql", reason="psycopg quotes in Python, SQLite binds in C")
def test_constants_are_quoted_once(users: list[User], built: list[Any]) -> None:
    passed = []

    def record(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        passed.append(tuple(parameters))
        return execute(sql, parameters, many, context)

    query = user_query(built)
    with connection.execute_wrapper(record):
        query(users[0].pk)
        query.update(users[1].pk, last_name="new")
    assert passed == [(users[0].pk,), ("new", users[1].pk)]


def test_columns_annotations_order_and_limit(users: list[User]) -> None:
    @compiled
    def query(lowest: int, is_first: int) -> "QuerySet[User, tuple[str, int]]":
        kind = Case(When(pk=is_first, then=1), default=2, output_field=IntegerField())
        rows = User.objects.filter(pk__gte=lowest).annotate(kind=kind).order_by("kind", "pk")
        return rows.values_list("username", "kind")[:2]

    assert query(users[1].pk, users[3].pk) == [("user 3", 1), ("user 1", 2)]
    assert query(users[4].pk, users[5].pk) == [("user 5", 1), ("user 4", 2)]


def test_related_objects_take_no_statement_for_each_row(users: list[User]) -> None:
    @compiled
    def query(lowest: int) -> QuerySet[User]:
        return User.objects.filter(pk__gte=lowest).order_by("pk").prefetch_related("groups")

    Group.objects.create(name="all").user_set.set(users)
    for lowest in (users[0].pk, users[3].pk):
        with CaptureQueriesContext(connection) as queries:
            found = query(lowest)
            assert all([group.name for group in user.groups.all()] == ["all"] for user in found)
        assert len(queries) == 2
    assert query(users[-1].pk + 1) == []


def test_wrong_number_of_arguments(users: list[User], built: list[Any]) -> None:
    query = user_query(built)
    assert query(user_pk=users[0].pk) == [users[0]]
    for arguments, named in (((), {}), ((1, 2), {}), ((1,), {"user": 2}), ((1,), {"user_pk": 2})):
        with pytest.raises(TypeError, match=r"user_query.*query takes the arguments user_pk\."):
            query(*arguments, **named)


def test_limited_rows_are_not_updated(users: list[User]) -> None:
    @compiled
    def first() -> QuerySet[User]:
        return User.objects.order_by("pk")[:1]

    assert first() == [users[0]]
    with pytest.raises(TypeError, match="first has a limit"):
        first.update(first_name="all of them")


@pytest.mark.skipif(not connection.features.has_select_for_update, reason="SQLite locks no rows")
def test_rows_are_locked_in_a_transaction_only(transactional_db: None) -> None:
    @compiled
    def locked(user_pk: int) -> QuerySet[User]:
        return User.objects.filter(pk=user_pk).select_for_update()

    user = User.objects.create(username="anna")
    with transaction.atomic():
        assert locked(user.pk) == [user]
    with pytest.raises(transaction.TransactionManagementError, match="locked locks rows"):
        locked(user.pk)


def test_update_of_one_row_only(users: list[User], built: list[Any]) -> None:
    query = user_query(built)
    at = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
    for user in users:
        assert query.update(user.pk, first_name=f"new {user.pk} 100%", last_login=at, is_active=False) == 1
    assert query.update(-1, first_name="unknown", last_login=None, is_active=True) == 0
    assert len(built) == 1
    for user in User.objects.all():
        assert (user.first_name, user.last_login, user.is_active) == (f"new {user.pk} 100%", at, False)
    query.update(users[0].pk, last_login=None)
    users[0].refresh_from_db()
    assert users[0].last_login is None


def test_update_with_different_expressions(users: list[User], built: list[Any]) -> None:
    query = user_query(built)
    for suffix in ("!", "?", "!"):
        query.update(users[0].pk, first_name=Concat(F("first_name"), Value(suffix)))
    users[0].refresh_from_db()
    assert users[0].first_name == "ann!?!"
    assert len(built) == 2


def test_many_different_updates_are_not_all_kept(users: list[User], built: list[Any]) -> None:
    query = user_query(built)
    for number in range(250):
        query.update(users[0].pk, first_name=Concat(Value("x"), Value(str(number))))
    assert len(query._updates) <= 100


def test_failed_update_marks_the_transaction_for_rollback(users: list[User], built: list[Any]) -> None:
    with transaction.atomic():
        with pytest.raises(IntegrityError):
            user_query(built).update(users[0].pk, username=users[1].username)
        assert transaction.get_connection().needs_rollback
        transaction.set_rollback(True)


def test_threads_share_a_query(transactional_db: None, built: list[Any]) -> None:
    users = [User.objects.create(username=f"user {number}") for number in range(4)]
    query = user_query(built)

    def read(user: User) -> bool:
        return all(query(user.pk) == [user] for _ in range(50))

    assert in_threads(*[lambda user=user: read(user) for user in users]) == [True] * 4


def test_changed_setting_is_used(users: list[User], settings: Any) -> None:
    @compiled
    def query(user_pk: int) -> "QuerySet[User, tuple[float]]":
        seconds: Any = Value(float(settings.LEASE_SECONDS))
        return User.objects.filter(pk=user_pk).annotate(seconds=seconds).values_list("seconds")

    for seconds in (30, 7):
        settings.LEASE_SECONDS = seconds
        assert query(users[0].pk) == [(seconds,)]


def test_all_queries_are_compiled_without_a_database() -> None:
    """A worker does this before it forks, and must not need the database for it.

    `LEASE_SECONDS` is the only setting in their SQL, as `tests.support.forget_compiled` assumes.
    """
    script = """
import django
django.setup()
from django.conf import LazySettings, settings
from django.db import connection
from django.utils.module_loading import import_string
from docora.db import compiled
import docora.urls
for path in settings.JOBS:
    import_string(path)
read, attribute = set(), LazySettings.__getattribute__
LazySettings.__getattribute__ = lambda settings, name: read.add(name) or attribute(settings, name)
compiled.compile_all()
compiled.compile_all()
print(len(compiled._queries), {query._select is None for query in compiled._queries}, connection.connection, *read)
"""
    engine = (
        "postgres://docora:secret@127.0.0.1:1/docora"
        if connection.vendor == "postgresql"
        else "sqlite:////missing/docora.sqlite3"
    )
    environment = os.environ | {"DATABASE_URL": engine, "DJANGO_SETTINGS_MODULE": "docora.settings"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    count, states, opened, *read = done.stdout.split()
    assert int(count) > 10
    assert (states, opened) == ("{False}", "None")
    assert {*read} & {*setting_names()} == {"LEASE_SECONDS"}
