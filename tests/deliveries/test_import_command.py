"""`import_docora` as a shell runs it: where it finds its source, and what it says when something is not there."""

import json
import shlex
from pathlib import Path

import pytest

from deliveries_app.management.commands.import_docora import KEY_VARIABLE, URL_VARIABLE
from deliveries_app.models import App, AppRepository, SyncRun
from tests.deliveries.test_import import BASE, FILES, GIT
from tests.docora.test_command_errors import outcomes
from tests.docora.test_docs import read
from tests.docora.test_up import free_port
from tests.support.deployment import GIVEN, compose
from tests.support.existing import ExistingService

SECRET = "s3cret"
KEY = {"SOURCE_ENCRYPTION_KEY": "0" * 64}

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def environment(instance_environment: dict[str, str], existing: ExistingService) -> dict[str, str]:
    """With the address and the key of the existing service's database."""
    url = f"{existing.url}&password={SECRET}"
    return instance_environment | {"SOURCE_DATABASE_URL": url, "SOURCE_ENCRYPTION_KEY": existing.key}


def tried(*lines: list[str], **environment: str) -> list[tuple[int, str, str]]:
    """What comes of each of these calls."""
    made = outcomes([["import_docora", *line] for line in lines], **environment)
    for line, (_, out, err) in zip(lines, made, strict=True):
        assert "Traceback" not in out + err, line
        assert SECRET not in out + err, line
    return made


def refusals(*lines: list[str], **environment: str) -> list[str]:
    """The sentence of each on stderr, alone."""
    made = tried(*lines, **environment)
    for line, (code, out, err) in zip(lines, made, strict=True):
        assert (code, out) == (1, ""), (line, err)
        assert err.startswith("CommandError: "), (line, err)
        assert err.count("\n") == 1, (line, err)
    return [err for _, _, err in made]


# --- Where it finds its source ------------------------------------------------------------------------------------------


def test_the_address_comes_from_the_environment_where_no_list_of_processes_shows_it(
    existing: ExistingService, environment: dict[str, str]
) -> None:
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), FILES)
    dry, wet = tried(["--dry-run", "--json"], [], **environment)
    assert (dry[0], dry[2]) == (0, "")
    assert json.loads(dry[1])["files"] == {"taken": 3, "here": 0, "left": 0}
    assert (wet[0], "delivered files: 3 of 3" in wet[2]) == (0, True)
    assert "3 taken, 0 here already, 0 left out" in wet[1]
    assert App.objects.count() == AppRepository.objects.count() == 1


def test_an_address_that_is_typed_goes_before_that_of_the_environment(
    existing: ExistingService, environment: dict[str, str]
) -> None:
    existing.app(BASE)
    elsewhere = environment | {"SOURCE_DATABASE_URL": f"postgres://u:{SECRET}@127.0.0.1:{free_port()}/none"}
    assert tried([environment["SOURCE_DATABASE_URL"], "--json"], **elsewhere)[0][0] == 0
    assert App.objects.count() == 1


@pytest.mark.parametrize("given", ["", "  "])
def test_without_an_address_it_is_wrong_usage_and_says_where_one_is_expected(given: str) -> None:
    for code, out, err in tried([], ["--json", "--dry-run"], [""], SOURCE_DATABASE_URL=given, **KEY):
        assert (code, out) == (2, "")
        assert "existing service's database in SOURCE_DATABASE_URL: postgres://user:password@host:5432/name" in err


def test_without_a_key_it_is_wrong_usage(environment: dict[str, str]) -> None:
    for code, out, err in tried([], ["--encryption-key-stdin"], **environment | {"SOURCE_ENCRYPTION_KEY": ""}):
        assert (code, out) == (2, "")
        assert "stdin" in err


def test_of_a_password_that_is_not_written_as_in_a_url_no_part_is_repeated(instance_environment) -> None:
    """libpq would take a part of it for the host, the port or the name of the database."""
    wrong = ("user:@s3cret@127.0.0.1:1/x", "user:x@s3cret@127.0.0.1:1/x", "user:x@y@s3cret@127.0.0.1:1/x",
             "user:s3cret/x@127.0.0.1:1/x", "user:1/s3cret@127.0.0.1:1/x", "user:s3cret", "user:s3cret/x")  # fmt: skip
    for said in refusals(*([f"postgres://{address}"] for address in wrong), **instance_environment | KEY):
        assert "The address is malformed" in said
        assert "@ as %40, / as %2F" in said


def test_a_password_that_is_written_as_in_a_url_is_understood_and_not_repeated(instance_environment) -> None:
    port = free_port()
    passwords = (SECRET, f"%40{SECRET}%2F", f"{SECRET}?", f":{SECRET}#")
    urls = [f"postgres://user:{password}@127.0.0.1:{port}/x" for password in passwords]
    urls.append(f"postgres://127.0.0.1:{port}/x?user=u&password={SECRET}")
    for said in refusals(*([url] for url in urls), **instance_environment | KEY):
        assert "cannot be reached: " in said
        assert "127.0.0.1" in said


def test_the_handbook_passes_both_to_the_container_of_a_service_that_there_is() -> None:
    [line] = read("/docs/operations/").code["moving-dry-run-containers"].splitlines()
    words = shlex.split(line)
    assert words[:4] == ["docker", "compose", "run", "--rm"]
    assert [words[at + 1] for at, word in enumerate(words) if word == "-e"] == [URL_VARIABLE, KEY_VARIABLE]
    service = compose(GIVEN)["services"][words[8]]
    assert words[9:] == [*service["command"][:2], "import_docora", "--dry-run"]


# --- When something is not there ----------------------------------------------------------------------------------------


def test_a_source_that_is_not_there_is_a_sentence(environment: dict[str, str], existing: ExistingService) -> None:
    missing = f"{existing.server.url_of('no_such_database')}&password={SECRET}"
    nobody = f"postgres://docora:{SECRET}@127.0.0.1:{free_port()}/docora"
    said = refusals([missing], [missing, "--json"], [nobody], [nobody, "--dry-run"], **environment)
    assert all("The existing service's database cannot be reached: " in sentence for sentence in said)
    assert ['database "no_such_database" does not exist' in sentence for sentence in said] == [True, True, False, False]


def test_a_source_without_its_tables_is_a_sentence(environment: dict[str, str], existing: ExistingService) -> None:
    existing.connection.execute("DROP TABLE apps, app_delivered_files CASCADE")
    for said in refusals([], ["--json"], ["--dry-run"], **environment):
        assert "it has no table apps and no table app_delivered_files" in said


def test_without_redis_everything_is_taken_all_the_same(environment: dict[str, str], existing: ExistingService) -> None:
    """Redis is only told of what is asked for; the sweep finds that in the database."""
    existing.watch(existing.app(BASE), existing.repository(f"{GIT}/docs"), {}, status="pending_snapshot")
    environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    [(code, out, err)] = tried(["--json"], **environment)
    assert (code, err) == (0, "")
    assert json.loads(out)["watches"]["taken"] == 1
    assert (AppRepository.objects.due().count(), SyncRun.objects.count()) == (1, 1)


@pytest.mark.parametrize("own", ["postgres://docora:s3cret@127.0.0.1:{}/docora", "sqlite:////nowhere/at/all"])
def test_without_docora_s_own_database_nothing_is_read(environment: dict[str, str], own: str) -> None:
    for code, out, err in tried([], ["--json"], **environment | {"DATABASE_URL": own.format(free_port())}):
        assert (code, out) == (1, "")
        assert err.startswith("The database cannot be used: ")
        assert err.endswith("Check DATABASE_URL, and whether it runs.")


def test_an_own_database_without_tables_is_a_sentence(environment: dict[str, str], tmp_path: Path) -> None:
    [said] = refusals([], **environment | {"DATABASE_URL": f"sqlite:///{tmp_path / 'empty.sqlite3'}"})
    assert "Nothing was imported: the database is not migrated: run manage.py migrate." in said
