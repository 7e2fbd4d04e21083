"""What the shells complete: commands, their options, and ids from the database.

A shell's script hands over the words that stand behind the program up to the cursor, and gets one candidate a line, with a
tab and a word about it. So the scripts know nothing, and fit every version. They ask the program that printed them.
"""

import os
import shlex
import sys
from argparse import Action, ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from django.db import DatabaseError, InterfaceError, connection

from deliveries_app.models import App, AppRepository, BulkOperation
from docora import command_list
from repositories_app.models import Repository

SHELLS = ("bash", "zsh", "fish")
_IDS_SHOWN = 200
_CONNECT_SECONDS = 2  # somebody waits with a finger on the key
type Candidates = Iterable[tuple[str, str]]


def script(shell: str, program: Sequence[str]) -> str:
    text = (Path(__file__).parent / "completion" / f"docora.{shell}").read_text()
    return text.replace("DOCORA_PROGRAM", shlex.join(program))


def this_program() -> list[str]:
    """How this very program is run from any folder: manage.py, a console script, the package, or what stands before it."""
    if called := os.environ.get("DOCORA_PROGRAM"):
        return [called]
    path = Path(sys.argv[0]).absolute()
    return [sys.executable, *(["-m", "docora"] if path.name == "__main__.py" else [str(path)])]


def candidates(words: Sequence[str]) -> list[tuple[str, str]]:
    """For the last of the words, which may be empty, each with a word about it."""
    *before, current = words or [""]
    return [(word, about) for word, about in _all(before, current) if word.startswith(current)]


def _all(before: list[str], current: str) -> Candidates:
    commands = dict(command_list.offered())
    if not before or before == ["help"]:
        return commands.items()
    name, *given = before
    if name not in commands:
        return []
    parser = command_list.load(name).create_parser("docora", name)
    if given and (option := _option(parser, given[-1])) and option.nargs != 0:
        return _values(option, [], current)
    if current.startswith("-"):
        return _options(parser, given)
    filled = _positionals(parser, given)
    expected = [action for action in parser._actions if not action.option_strings]
    return _values(expected[len(filled)], filled, current) if len(filled) < len(expected) else []


def _option(parser: ArgumentParser, word: str) -> Action | None:
    return parser._option_string_actions.get(word)


def _options(parser: ArgumentParser, given: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Those of the command itself that are not there yet."""
    for action in command_list.own_options(parser):
        if not set(action.option_strings) & set(given):
            yield action.option_strings[-1], action.help or ""


def _positionals(parser: ArgumentParser, given: Sequence[str]) -> list[str]:
    """The words that are neither options nor their values."""
    found, is_value = [], False
    for word in given:
        option = _option(parser, word)
        if option is None and not is_value and not word.startswith("-"):
            found.append(word)
        is_value = option is not None and option.nargs != 0
    return found


def _values(action: Action, filled: list[str], current: str) -> Candidates:
    if action.choices:
        return [(str(choice), "") for choice in action.choices]
    ids = _IDS.get(action.metavar if isinstance(action.metavar, str) else action.dest)
    if ids is None or not current.isprintable():
        return []
    if connection.vendor == "sqlite" and not Path(connection.settings_dict["NAME"]).exists():
        return []  # asking would make the file
    with _impatient(), suppress(DatabaseError, InterfaceError):
        return list(ids(current, filled[0] if filled else ""))
    return []


@contextmanager
def _impatient() -> Iterator[None]:
    """A connection that is made meanwhile is waited for this long only; the process's own patience stays as it was."""
    patient = connection.settings_dict["OPTIONS"]
    if connection.vendor == "postgresql":
        connection.settings_dict["OPTIONS"] = patient | {"connect_timeout": _CONNECT_SECONDS}
    try:
        yield
    finally:
        connection.settings_dict["OPTIONS"] = patient


def _apps(beginning: str, _: str) -> Candidates:
    apps = App.objects.filter(ended_at=None, app_id__startswith=beginning)
    return apps.values_list("app_id", "name")[:_IDS_SHOWN]


def _repositories(beginning: str, app_id: str) -> Candidates:
    """Those that the app watches; of all apps where none stands before."""
    watches = AppRepository.objects.alive()
    if app_id:
        watches = watches.filter(app__app_id=app_id)
    found = Repository.objects.filter(
        pk__in=watches.order_by().values("repository"), repository_id__startswith=beginning
    )
    return [(repository.repository_id, str(repository)) for repository in found[:_IDS_SHOWN]]


def _requests(beginning: str, _: str) -> Candidates:
    running = BulkOperation.objects.filter(ended_at=None, operation_id__startswith=beginning)
    return [*running.values_list("operation_id", "title")[:_IDS_SHOWN], *_apps(beginning, "")]


_IDS: dict[str, Callable[[str, str], Candidates]] = {
    "app_id": _apps,
    "APP_ID": _apps,
    "repository_id": _repositories,
    "id": _requests,
}
"""By the name of an argument."""
