"""Why was this file (not) sent? Everything that is known about one path of one watched repository, in words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deliveries_app.actors import Actor
from deliveries_app.eligible import Skipped
from deliveries_app.found import TRANSFORM_FAILED, Found, look
from deliveries_app.kinds import Kind
from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.plan import Terms
from deliveries_app.recorder import path_digest
from deliveries_app.rows import terms_of
from deliveries_app.services.pausing import current_pause
from deliveries_app.waiting import NextTry, next_try

PERMISSION = "deliveries_app.view_apprepository"
_ROWS = 10  # several files may have been made of one
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class Verdict(NamedTuple):
    """The answer in one sentence. `state` in a word: `delivered`, `waiting`, `in doubt`, `cleared`, `failed`,
    `left out`, `absent` or `unknown`."""

    state: str
    words: str


@dataclass(frozen=True)
class Explanation:
    """`found` in the repository, `row` of the client, the `failure` that is listed; each says its own part. `tried_next`
    is None where nothing is to be sent. `made_from`: the path asked for is what transforms make of that file."""

    pair: AppRepository
    path: str
    verdict: Verdict
    found: Found
    row: Delivery | None
    failure: DeliveryFailure | None
    tried_next: NextTry | None
    made_from: str = ""

    @property
    def row_state(self) -> str:
        """What the client's row counts for: `delivered`, `cleared` or `in doubt`."""
        assert self.row
        if not self.row.acknowledged:
            return "in doubt"
        return "cleared" if self.row.generation < self.pair.resend_floor else "delivered"


def explain(actor: Actor, pair: AppRepository, path: str) -> Explanation:
    """Reads only, and fetches nothing: what the repository has is told from the mirror of this machine, at the commit
    that was synced last or is being synced. A byte that is no UTF-8 is written as the pages do: `caf\\xe9`."""
    actor.require(PERMISSION)
    actor.require_pair(pair)
    paths = _readings(path)
    terms = terms_of(pair)
    found = look(pair, terms, _commit(pair), paths)
    row = _row(pair, found, paths)
    failure = _failure(pair, found, row, paths)
    made_from = row.source_path if row and found.entry is None and row.source_path not in {"", row.path} else ""
    verdict = _made_from(made_from) if made_from else judge(found, row, failure, terms)
    tried_next = None
    if verdict.state in {"waiting", "in doubt", "cleared", "failed"}:
        tried_next = next_try(pair, current_pause(), rests_until=row.hold_until if row else None)
    return Explanation(pair, path, verdict, found, row, failure, tried_next, made_from)


def _readings(path: str) -> list[bytes]:
    """The bytes that may be meant, the literal ones first."""
    literal = path.encode("utf-8", "surrogatepass")
    unescaped = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), literal)
    return [literal] if unescaped == literal else [literal, unescaped]


def _commit(pair: AppRepository) -> str:
    """That of the run under way, else the one whose sync came to its end, else the newest that was begun."""
    begun = pair.runs.exclude(commit_sha="").order_by("-generation", "-pk").values_list("commit_sha", flat=True)
    return begun.filter(outcome="").first() or pair.last_commit or begun.first() or ""


def _row(pair: AppRepository, found: Found, paths: Sequence[bytes]) -> Delivery | None:
    """What the client was told: of the path that the file is sent under, or once was; where the repository has nothing,
    of what transforms make of another file."""
    texts = [text for path in paths if (text := path.decode("utf-8", "replace").replace("\0", "")).encode() == path]
    made_of_it = Delivery.objects.filter(pair=pair, source_path__in=texts)
    at_it = Delivery.objects.filter(pair=pair, path__in=[*texts, found.sent_as])
    rows = sorted([*made_of_it[:_ROWS], *at_it[:_ROWS]], key=lambda row: row.path != found.sent_as)
    own = (row for row in rows if row.source_path in {"", *texts})
    return next(own, rows[0] if rows and found.entry is None else None)


def _failure(pair: AppRepository, found: Found, row: Delivery | None, paths: Sequence[bytes]) -> DeliveryFailure | None:
    named = {*paths, *(text.encode() for text in (found.sent_as, row.path if row else "") if text)}
    listed = DeliveryFailure.objects.filter(pair=pair, path_digest__in=[path_digest(path) for path in named])
    return listed.order_by("kind").first()  # what failed rather than what is skipped


def judge(found: Found, row: Delivery | None, failure: DeliveryFailure | None, terms: Terms) -> Verdict:
    """What all of it means."""
    failed = failure if failure and failure.kind == FailureKind.FAILED else None
    if found.is_directory:
        return Verdict("absent", "This is a directory. Ask for one of the files in it.")
    if found.left_out:
        return _left_out(found.left_out, row, failed)
    if found.entry is None and not found.unknown:
        return _gone(row, failed)
    if row is None:
        return _never_told(found, failure)
    if not row.acknowledged:
        return _in_doubt(found, row, failed)
    if failed:
        return _not_delivered(failed)
    if row.generation < terms.floor:
        return Verdict("cleared", "A re-sync has cleared its record: the client had it, and gets it again.")
    return _held(found, row, terms)


def _left_out(why: Skipped, row: Delivery | None, failed: DeliveryFailure | None) -> Verdict:
    words = f"Not sent: {_tail(why.message)}"
    if why.cause == TRANSFORM_FAILED:
        return Verdict("failed", words)
    if row is None or why.cause == "rules":  # nothing at all is sent or deleted then
        return Verdict("left out", words)
    if failed:
        return Verdict(
            "failed", f"{words} The client still has it, and has not accepted its deletion: {_tail(failed.message)}"
        )
    return Verdict("waiting", f"{words} The client still has it from before, until it is told of the deletion.")


def _gone(row: Delivery | None, failed: DeliveryFailure | None) -> Verdict:
    """The repository has no such file."""
    if row is None:
        words = "There is no such file: it never was there, or the client has accepted its deletion."
        return Verdict("absent", words)
    if failed:
        words = f"Deleted in the repository, and the client has not accepted that: {_tail(failed.message)}"
        return Verdict("failed", words)
    if row.kind == Kind.DELETE:
        return Verdict("in doubt", "Deleted in the repository; the client was told and has not acknowledged it.")
    return Verdict("waiting", "Deleted in the repository; the client still has it, until it is told of the deletion.")


def _never_told(found: Found, failure: DeliveryFailure | None) -> Verdict:
    if failure and failure.kind == FailureKind.SKIPPED:
        return Verdict("left out", f"Not sent: {_tail(failure.message)}")
    if failure:
        return _not_delivered(failure)
    if found.unknown:
        return Verdict(
            "unknown",
            f"The client was told of no such file. What the repository has is not known here: {_tail(found.unknown)}",
        )
    return Verdict("waiting", "Not sent yet: the repository has it, and the next sync sends it.")


def _in_doubt(found: Found, row: Delivery, failed: DeliveryFailure | None) -> Verdict:
    if failed:
        return _not_delivered(failed)
    if row.kind == Kind.DELETE:
        again = "; the file is there again, and is sent" if found.entry else ""
        words = f"The client was told that it is deleted, and has not acknowledged that{again}."
        return Verdict("in doubt", words)
    return Verdict("in doubt", "The client was told of it and has not acknowledged it: it is told again.")


def _held(found: Found, row: Delivery, terms: Terms) -> Verdict:
    """The client has acknowledged it, and the acknowledgement counts."""
    if found.entry is None:
        words = f"Delivered: the client acknowledged what it was told last. What the repository has is not known here: {_tail(found.unknown)}"
        return Verdict("delivered", words)
    if row.source_key == terms.source_key(found.entry.blob, found.path.decode()):
        return Verdict("delivered", "Delivered: the client has acknowledged exactly what the repository has.")
    if row.source_key is None:
        return Verdict("waiting", "The client had it before Docora kept records; the next sync compares the contents.")
    return Verdict("waiting", "The client has an older content; the next sync sends what the repository has.")


def _not_delivered(failure: DeliveryFailure) -> Verdict:
    return Verdict("failed", f"Not delivered: {_tail(failure.message)}")


def _made_from(source: str) -> Verdict:
    return Verdict("absent", f"The repository has no such file: transforms make it of {source}. Ask about that one.")


def _tail(message: str) -> str:
    """A sentence as the end of another one."""
    return message[:1].lower() + message[1:] if message[1:2].islower() or message.startswith("A ") else message
