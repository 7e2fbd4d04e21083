"""`import_docora` from a shell: where it reads its configuration, and its errors."""

import json
import shlex
from pathlib import Path

import pytest

from deliveries_app.management.commands.import_docora import KEY_VARIABLE, URL_VARIABLE
from deliveries_app.models import App, AppRepository, SyncRun
from tests.deliveries.test_import import BASE, FILES, GIT
from tests.docora.test_command_errors import outcomes
from tests.docora.test_docs import read
from tests.support.deployment import ENV_FILE, compose
from tests.support.existing import ExistingService
from tests.support.instance import free_port

SECRET = "s3cret"
KEY = {"SOURCE_ENCRYPTION_KEY": "0" * 64}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def environment(instance_environment: dict[str, str], existing: ExistingService) -> dict[str, str]:
    """The instance's environment with the URL and key of the existing service's database."""
    url = f"{existing.url}&password={SECRET}"
    return instance_environment | {"SOURCE_DATABASE_URL": url, "SOURCE_ENCRYPTION_KEY": existing.key}


def call(*lines: list[str], **environment: str) -> list[tuple[int, str, str]]:
    """Return exit code, stdout and stderr of each command line, after checking that none shows the password."""
    results = outcomes([["import_docora", *line] for line in lines], **environment)
    for line, (_, out, err) in zip(lines, results, strict=True):
        assert "Traceback" not in out + err, line
        assert SECRET not in out + err, line
    return results


def refusals(*lines: list[str], **environment: str) -> list[str]:
    """Return each command line's one-line error on stderr."""
    results = call(*lines, **environment)
    for line, (code, out, err) in zip(lines, results, strict=True):
        assert (code, out) == (1, ""), (line, err)
        assert err.startswith("CommandError: "), (line, err)
        assert err.count("\n") == 1, (line, err)
    return [err for _, _, err in results]


# --- Configuration -------------------------------------------------------------------------------------------------------


def test_url_from_the_environment(existing: ExistingService, environment: dict[str, str]) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES)
    dry, wet = call(["--dry-run", "--json"], [], **environment)
    assert (dry[0], dry[2]) == (0, "")
    assert json.loads(dry[1])["files"] == {"taken": 3, "here": 0, "left": 0}
    assert (wet[0], "delivered files: 3 of 3" in wet[2]) == (0, True)
    assert "3 imported, 0 already here, 0 left out" in wet[1]
    assert App.objects.count() == AppRepository.objects.count() == 1


def test_url_argument_overrides_the_environment(existing: ExistingService, environment: dict[str, str]) -> None:
    existing.app(BASE)
    elsewhere = environment | {"SOURCE_DATABASE_URL": f"postgres://u:{SECRET}@127.0.0.1:{free_port()}/none"}
    assert call([environment["SOURCE_DATABASE_URL"], "--json"], **elsewhere)[0][0] == 0
    assert App.objects.count() == 1


@pytest.mark.parametrize("given", ["", "  "])
def test_missing_url_is_a_usage_error(given: str) -> None:
    for code, out, err in call([], ["--json", "--dry-run"], [""], SOURCE_DATABASE_URL=given, **KEY):
        assert (code, out) == (2, "")
        assert "Set SOURCE_DATABASE_URL to the URL of the existing service's database: postgres://user:" in err


def test_missing_key_is_a_usage_error(environment: dict[str, str]) -> None:
    for code, out, err in call([], ["--encryption-key-stdin"], **environment | {"SOURCE_ENCRYPTION_KEY": ""}):
        assert (code, out) == (2, "")
        assert "stdin" in err


def test_unescaped_password_is_never_printed(instance_environment) -> None:
    """libpq would parse a part of it as host, port or database name."""
    wrong = ("user:@s3cret@127.0.0.1:1/x", "user:x@s3cret@127.0.0.1:1/x", "user:x@y@s3cret@127.0.0.1:1/x",
             "user:s3cret/x@127.0.0.1:1/x", "user:1/s3cret@127.0.0.1:1/x", "user:s3cret", "user:s3cret/x")  # fmt: skip
    for error in refusals(*([f"postgres://{address}"] for address in wrong), **instance_environment | KEY):
        assert "The database URL is malformed" in error
        assert "@ as %40, / as %2F" in error


def test_escaped_password_works_and_is_never_printed(instance_environment) -> None:
    port = free_port()
    passwords = (SECRET, f"%40{SECRET}%2F", f"{SECRET}?", f":{SECRET}#")
    urls = [f"postgres://user:{password}@127.0.0.1:{port}/x" for password in passwords]
    urls.append(f"postgres://127.0.0.1:{port}/x?user=u&password={SECRET}")
    for error in refusals(*([url] for url in urls), **instance_environment | KEY):
        assert "cannot be reached: " in error
        assert "127.0.0.1" in error


def test_handbook_command_for_containers() -> None:
    [line] = read("/docs/operations/").code["moving-dry-run-containers"].splitlines()
    words = shlex.split(line)
    assert words[:4] == ["docker", "compose", "run", "--rm"]
    assert [words[at + 1] for at, word in enumerate(words) if word == "-e"] == [URL_VARIABLE, KEY_VARIABLE]
    service = compose(ENV_FILE)["services"][words[8]]
    assert words[9:] == [*service["command"][:2], "import_docora", "--dry-run"]


# --- Errors --------------------------------------------------------------------------------------------------------------


def test_source_that_cannot_be_reached(environment: dict[str, str], existing: ExistingService) -> None:
    missing = f"{existing.server.url_of('no_such_database')}&password={SECRET}"
    nobody = f"postgres://docora:{SECRET}@127.0.0.1:{free_port()}/docora"
    errors = refusals([missing], [missing, "--json"], [nobody], [nobody, "--dry-run"], **environment)
    assert all("The existing service's database cannot be reached: " in error for error in errors)
    unknown = ['database "no_such_database" does not exist' in error for error in errors]
    assert unknown == [True, True, False, False]


def test_source_without_its_tables(environment: dict[str, str], existing: ExistingService) -> None:
    existing.connection.execute("DROP TABLE apps, app_delivered_files CASCADE")
    for error in refusals([], ["--json"], ["--dry-run"], **environment):
        assert "it has no table apps and no table app_delivered_files" in error


def test_import_works_without_redis(environment: dict[str, str], existing: ExistingService) -> None:
    """Redis only wakes workers; the sweep finds the request in the database."""
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), {}, status="pending_snapshot")
    environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    [(code, out, err)] = call(["--json"], **environment)
    assert (code, err) == (0, "")
    assert json.loads(out)["watches"]["taken"] == 1
    assert (AppRepository.objects.due().count(), SyncRun.objects.count()) == (1, 1)


@pytest.mark.parametrize(
    ("own", "begins", "ends"),
    [
        (
            "postgres://docora:s3cret@127.0.0.1:{}/docora",
            "The database cannot be used: ",
            "Check DATABASE_URL, and that the database is running.",
        ),
        (
            "sqlite:////nowhere/at/all",
            "The database /nowhere/at/all cannot be used: ",
            "Check its disk, and run commands as Docora's user.",
        ),
    ],
)
def test_docoras_database_is_down(environment: dict[str, str], own: str, begins: str, ends: str) -> None:
    for code, out, err in call([], ["--json"], **environment | {"DATABASE_URL": own.format(free_port())}):
        assert (code, out) == (1, "")
        assert err.startswith(begins)
        assert err.endswith(ends)


def test_docoras_database_is_not_migrated(environment: dict[str, str], tmp_path: Path) -> None:
    [error] = refusals([], **environment | {"DATABASE_URL": f"sqlite:///{tmp_path / 'empty.sqlite3'}"})
    assert "Nothing was imported: the database is not migrated: run manage.py migrate." in error
