"""How examinations are made: one after the other, each within its time, and none of them can break the rest."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from django.db import connections

from deliveries_app.monitoring.doctor.findings import Finding, Level, problem, warning
from docora.security.redaction import redact
from docora.text import clean_text


@dataclass(frozen=True)
class Examination:
    """`look` yields findings. `needs` are the names of examinations without whose subject there is nothing to see, and
    `seconds` is how long it may take."""

    name: str
    look: Callable[[], Iterable[Finding]]
    needs: tuple[str, ...] = ()
    seconds: float = 10.0


@dataclass(frozen=True)
class Report:
    """A finding, and the examination (`check`) that it comes from."""

    check: str
    level: Level
    words: str
    advice: str


def examine(examinations: Sequence[Examination]) -> list[Report]:
    """What all of them find. One whose needs were found to have a problem is not made: it would only wait again for what
    does not answer."""
    reports: list[Report] = []
    unfit: set[str] = set()
    for examination in examinations:
        missing = next((name for name in examination.needs if name in unfit), None)
        if missing:
            found = [warning(f"Not examined, because of the problem of {missing}.")]
        else:
            found = _within_its_time(examination)
        if any(finding.level is Level.PROBLEM for finding in found):
            unfit.add(examination.name)
        reports += [
            Report(examination.name, item.level, _one_line(item.words), _one_line(item.advice)) for item in found
        ]
    return reports


def _within_its_time(examination: Examination) -> list[Finding]:
    """In a thread, because a driver that waits for a host that is silent knows no time limit of ours. The thread is
    given up then, and dies with the process."""
    found: list[Finding] = []

    def look() -> None:
        try:
            for finding in examination.look():
                found.append(finding)
        except Exception as error:
            found.append(_failed(error))
        finally:
            connections.close_all()  # this thread's own

    thread = threading.Thread(target=look, name=f"doctor-{examination.name}", daemon=True)
    thread.start()
    thread.join(examination.seconds)
    if thread.is_alive():
        late = f"The examination did not end within {examination.seconds:g} s."
        return [*found, problem(late, "Something that it asked keeps it waiting: a server or a disk that hangs.")]
    return found


def _one_line(words: str) -> str:
    """Names, paths and answers stand in them, which must not start a line of their own or steer a terminal."""
    return clean_text(" ".join(words.split()), 2000)


def _failed(error: Exception) -> Finding:
    """Foreign words: they may hold anything."""
    reason = clean_text(redact(str(error)).partition("\n")[0], 300)
    return problem(
        f"The examination itself failed, with {type(error).__name__}{': ' if reason else ''}{reason.rstrip('.')}.",
        "If nothing else that is said here explains it, please report it.",
    )
