"""What an examination finds: a sentence, how bad it is, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """A problem makes the command fail, a warning does not. In the order in which they are read."""

    FINE = "fine"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    level: Level
    words: str
    advice: str = ""


def fine(words: str) -> Finding:
    return Finding(Level.FINE, words)


def warning(words: str, advice: str = "") -> Finding:
    return Finding(Level.WARNING, words, advice)


def problem(words: str, advice: str = "") -> Finding:
    return Finding(Level.PROBLEM, words, advice)


def of_probe(words: str) -> Finding:
    """The problem that a probe of `deliveries_app.monitoring.health` names: "what is wrong: what to do", without capitals and full stops."""
    wrong, _, advice = words.partition(": ")
    return problem(_sentence(wrong), _sentence(advice))


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""
