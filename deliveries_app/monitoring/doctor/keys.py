"""Keys and what they protect: can they be guessed, do they open what is stored, and who else can read them?"""

import math
import stat
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings

from deliveries_app.monitoring.doctor.findings import Finding, fine, problem, warning
from docora.conf.installation import env_file, program
from docora.security.reencryption import Column, columns, reencrypt

_SECRET_KEY_BITS, _ENCRYPTION_KEY_BITS = 100, 60
_AT_MOST = 5000  # secrets of a column that are opened: about a second
_MAKE_ONE = 'python3 -c "import secrets; print(secrets.token_urlsafe(50))"'


def bits(key: str) -> float:
    """An upper bound of what guessing a key costs, from how long it is and how many different characters it has. It finds
    the ones that somebody typed; nothing can tell a random one by its looks."""
    return len(key) * math.log2(max(1, len(set(key))))


def strength() -> Iterator[Finding]:
    weak = settings.SECRET_KEY.startswith("django-insecure-") or bits(settings.SECRET_KEY) < _SECRET_KEY_BITS
    if weak:
        yield problem(
            "SECRET_KEY is short or repeats itself: sessions signed with it can be forged.", f"Make one: {_MAKE_ONE}"
        )
    for place, key in enumerate(settings.ENCRYPTION_KEYS, 1):
        if bits(key) < _ENCRYPTION_KEY_BITS:
            weak = True
            yield problem(
                f"Number {place} of ENCRYPTION_KEYS is short or repeats itself: whoever has the database can guess it.",
                f"Make one ({_MAKE_ONE}), put it in front, and run {program()} rotate_encryption_keys.",
            )
    if not weak:
        yield fine("SECRET_KEY and ENCRYPTION_KEYS do not look guessable.")


def secrets() -> Iterator[Finding]:
    """Can everything that is stored be read with the keys? Of each column the first `_AT_MOST`."""
    found = columns()
    for column in found:
        reencrypt(column, dry_run=True, at_most=_AT_MOST)
    lost = sum(len(column.unreadable) for column in found)
    older = sum(column.renewed for column in found)
    if lost:
        yield problem(
            f"{lost:,} stored {'secret' if lost == 1 else 'secrets'} cannot be decrypted with any of the ENCRYPTION_KEYS: "
            f"{'; '.join(_rows_of(column) for column in found if column.unreadable)}.",
            "Add the key that was used to the end of the list, or give those secrets anew.",
        )
    if older:
        yield warning(
            f"{older:,} stored {'secret has' if older == 1 else 'secrets have'} an older one of the ENCRYPTION_KEYS.",
            f"Run {program()} rotate_encryption_keys before you remove that key.",
        )
    if not lost and not older:
        read = sum(column.current for column in found)
        cut = any(column.current == _AT_MOST for column in found)
        yield fine(f"All {read:,} stored secrets {'that were looked at ' if cut else ''}are read with the newest key.")


def _rows_of(column: Column) -> str:
    """Some of the rows, by their primary keys."""
    shown = ", ".join(map(str, column.unreadable[:5]))
    return f"{column}, pk {shown}{' and more' if len(column.unreadable) > 5 else ''}"


def permissions() -> Iterator[Finding]:
    """Who besides Docora's user may read its keys and enter its folders? A group may be meant; everybody is not."""
    data, repos = Path(settings.DATA_DIR), Path(settings.REPOS_DIR)
    found = [*map(_judge_file, (data / "keys.json", env_file())), *map(_judge_folder, (data, repos))]
    told = [finding for finding in found if finding]
    yield from told or [fine("Keys, data directory and mirrors are open to nobody but their owner.")]


def _judge_file(path: Path) -> Finding | None:
    mode = path.stat().st_mode if path.is_file() else 0
    if mode & stat.S_IRWXO:
        return problem(f"Every user of this machine can read {path}, which may hold keys.", f"chmod 600 {path}")
    if mode & stat.S_IRWXG:
        return warning(
            f"The group of {path} can read it, and it may hold keys.", f"chmod 600 {path}, unless that is meant."
        )
    return None


def _judge_folder(path: Path) -> Finding | None:
    if not path.is_dir() or not path.stat().st_mode & stat.S_IRWXO:
        return None
    return warning(
        f"Every user of this machine can enter {path}, which holds sessions, or what private repositories hold.",
        f"chmod 700 {path}",
    )
