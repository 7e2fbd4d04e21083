"""PostgreSQL plans a prepared query once for each connection, with a plan that suits tables of any size."""

from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import NotSupportedError, ProgrammingError, close_old_connections, connection, transaction
from django.db.models import F, QuerySet

from docora.db import prepared
from docora.db.compiled import Compiled, compiled_and_prepared

pytestmark = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no prepared statements")


@pytest.fixture
def user(db: None) -> Any:
    prepared.forget()
    yield User.objects.create(username="50%", first_name="Ann")
    prepared.forget()


@pytest.fixture
def query() -> Compiled[[int], User]:
    @compiled_and_prepared
    def user_without_email(user_pk: int) -> QuerySet[User]:
        return User.objects.filter(pk=user_pk, email="").exclude(username="100%")

    return user_without_email


@pytest.fixture
def executed(user: User) -> Any:
    """The statements that Django executes."""
    statements = []

    def record(execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        return execute(sql, parameters, many, context)

    with connection.execute_wrapper(record):
        yield statements


def names() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE '%%user_without_email%%' ORDER BY name")
        return [name for (name,) in cursor.fetchall()]


def test_second_execution_prepares(user: User, query: Compiled[[int], User], executed: list[str]) -> None:
    before = names()
    assert query(user.pk) == [user]
    assert names() == before
    for _ in range(3):
        assert query(user.pk) == [user]
    assert query(user.pk + 1) == []
    [name] = set(names()) - set(before)
    assert executed.count(f'EXECUTE "{name}"(%s)') == 4
    assert "test_prepared." in name


def test_updates(user: User, query: Compiled[[int], User], executed: list[str]) -> None:
    for number in range(4):
        assert query.update(user.pk, last_name=f"{number}%s'", first_name=F("username")) == 1
        assert query.update(user.pk + 1, last_name="other", first_name=F("username")) == 0
        user.refresh_from_db()
        assert (user.last_name, user.first_name) == (f"{number}%s'", "50%")
    assert sum(sql.startswith("UPDATE") for sql in executed) == 1
    assert sum(sql.startswith("EXECUTE") for sql in executed) == 7


def test_plan_of_a_small_table_suits_a_large_one(user: User, query: Compiled[[int], User]) -> None:
    def plan_of(statement: str) -> str:
        cursor.execute(f"EXPLAIN {statement}")
        return str(cursor.fetchone())

    with connection.cursor() as cursor:
        cursor.execute("ANALYZE auth_user")
        assert "Seq Scan on auth_user" in plan_of(f"SELECT * FROM auth_user WHERE id = {user.pk}")
        for _ in range(2):
            query(user.pk)
        assert "Index Scan using auth_user_pkey" in plan_of(f'EXECUTE "{names()[-1]}"({user.pk})')
        assert "Seq Scan on auth_user" in plan_of(f"SELECT * FROM auth_user WHERE id = {user.pk}")


def test_rollback_keeps_what_was_prepared(user: User, query: Compiled[[int], User]) -> None:
    query(user.pk)
    with transaction.atomic():
        query(user.pk)
        transaction.set_rollback(True)
    assert query(user.pk) == [user]


def test_error_of_a_broken_transaction_is_djangos(user: User, query: Compiled[[int], User]) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(transaction.TransactionManagementError):
            query(user.pk)


def test_changed_result_is_prepared_again(user: User, query: Compiled[[int], User]) -> None:
    for _ in range(2):
        query(user.pk)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE auth_user ALTER COLUMN first_name TYPE varchar(151)")
        with pytest.raises(NotSupportedError, match="cached plan must not change"), transaction.atomic():
            query(user.pk)
        for _ in range(3):
            assert query(user.pk) == [user]
        transaction.set_rollback(True)
    prepared.forget()


def test_deallocated_statement_is_prepared_again(user: User, query: Compiled[[int], User]) -> None:
    for _ in range(2):
        query.update(user.pk, last_name="a")
    with connection.cursor() as cursor:
        cursor.execute("DEALLOCATE ALL")
    with pytest.raises(ProgrammingError, match="does not exist"), transaction.atomic():
        query.update(user.pk, last_name="b")
    for _ in range(3):
        assert query.update(user.pk, last_name="c") == 1


@pytest.mark.django_db(transaction=True)
def test_kept_connection_that_broke_is_replaced(query: Compiled[[int], User]) -> None:
    """What was prepared on the broken connection is not executed on the new one."""
    user = User.objects.create(username="ann")
    for _ in range(3):
        assert query(user.pk) == [user]
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
    close_old_connections()  # as at the start of each sweep round
    for _ in range(3):
        assert query(user.pk) == [user]


def test_nothing_is_prepared_behind_a_pooler(
    user: User, query: Compiled[[int], User], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda _: 1))  # as PgBouncer does
    before = names()
    for _ in range(3):
        assert query(user.pk) == [user]
    assert names() == before


def test_statements_that_are_not_repeated_are_not_kept(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_MAX_SEEN", 3)
    monkeypatch.setattr(prepared, "_MAX_PREPARED", 2)

    def executed(name: str, text: str) -> str:
        with prepared.prepared(name, text) as statement:
            return statement

    texts = [f"SELECT {number}" for number in range(8)]
    assert [executed("once", text) for text in texts] == texts
    repeated = [executed("twice", text) for text in texts[-2:] for _ in range(2)]
    assert [text.startswith("EXECUTE") for text in repeated] == [True, True, True, True]
    assert [executed("twice", "SELECT 9") for _ in range(3)] == ["SELECT 9"] * 3
