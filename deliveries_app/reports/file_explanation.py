"""Explain why a file was or was not sent."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.models.deliveries import Kind, path_digest
from deliveries_app.planning.delivery_rows import delivery_rules_of
from deliveries_app.planning.eligibility import Skipped
from deliveries_app.planning.file_lookup import TRANSFORM_FAILED, FileLookup, look_up
from deliveries_app.planning.plan import DeliveryRules
from deliveries_app.reports.next_attempt import NextTry, next_try
from deliveries_app.services.control import current_pause

PERMISSION = "deliveries_app.view_apprepository"
_ROWS = 10  # several files may have been made of one
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class Decision(NamedTuple):
    """A one-sentence explanation. `state` is one of `delivered`, `waiting`, `in doubt`, `cleared`, `failed`,
    `left out`, `absent` or `unknown`."""

    state: str
    message: str


@dataclass(frozen=True)
class Explanation:
    """The repository entry `found`, the delivery `row`, and the listed `failure`, with the resulting `verdict`.

    `tried_next` is None if nothing is to be sent. `made_from` is the source file if transforms produce this path.
    """

    watch: AppRepository
    path: str
    verdict: Decision
    found: FileLookup
    row: Delivery | None
    failure: DeliveryFailure | None
    tried_next: NextTry | None
    made_from: str = ""

    @property
    def row_state(self) -> str:
        """State of the delivery row: `delivered`, `cleared` or `in doubt`."""
        assert self.row
        if not self.row.acknowledged:
            return "in doubt"
        return "cleared" if self.row.generation < self.watch.resend_floor else "delivered"


def explain(actor: Actor, watch: AppRepository, path: str) -> Explanation:
    """Explain one path. Reads this machine's mirror at the commit being synced or synced last; fetches nothing.

    Write non-UTF-8 bytes as the pages show them: `caf\\xe9`.
    """
    actor.require(PERMISSION)
    actor.require_watch(watch)
    paths = _readings(path)
    delivery_rules = delivery_rules_of(watch)
    found = look_up(watch, delivery_rules, _commit(watch), paths)
    row = _row(watch, found, paths)
    failure = _failure(watch, found, row, paths)
    made_from = row.source_path if row and found.entry is None and row.source_path not in {"", row.path} else ""
    verdict = _made_from(made_from) if made_from else judge(found, row, failure, delivery_rules)
    tried_next = None
    if verdict.state in {"waiting", "in doubt", "cleared", "failed"}:
        tried_next = next_try(watch, current_pause(), hold_until=row.hold_until if row else None)
    return Explanation(watch, path, verdict, found, row, failure, tried_next, made_from)


def _readings(path: str) -> list[bytes]:
    """Return possible byte paths, literal first."""
    literal = path.encode("utf-8", "surrogatepass")
    unescaped = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), literal)
    return [literal] if unescaped == literal else [literal, unescaped]


def _commit(watch: AppRepository) -> str:
    """Return the commit of the open run, else the last synced one, else the newest attempted."""
    begun = watch.runs.exclude(commit_sha="").order_by("-generation", "-pk").values_list("commit_sha", flat=True)
    return begun.filter(outcome="").first() or watch.last_commit or begun.first() or ""


def _row(watch: AppRepository, found: FileLookup, paths: Sequence[bytes]) -> Delivery | None:
    """Return the delivery row for the current or former path; without a repository entry, also a transform's output."""
    texts = [text for path in paths if (text := path.decode("utf-8", "replace").replace("\0", "")).encode() == path]
    made_of_it = Delivery.objects.filter(watch=watch, source_path__in=texts)
    at_it = Delivery.objects.filter(watch=watch, path__in=[*texts, found.sent_as])
    rows = sorted([*made_of_it[:_ROWS], *at_it[:_ROWS]], key=lambda row: row.path != found.sent_as)
    own = (row for row in rows if row.source_path in {"", *texts})
    return next(own, rows[0] if rows and found.entry is None else None)


def _failure(
    watch: AppRepository, found: FileLookup, row: Delivery | None, paths: Sequence[bytes]
) -> DeliveryFailure | None:
    named = {*paths, *(text.encode() for text in (found.sent_as, row.path if row else "") if text)}
    listed = DeliveryFailure.objects.filter(watch=watch, path_digest__in=[path_digest(path) for path in named])
    return listed.order_by("kind").first()  # failed before skipped


def judge(
    found: FileLookup, row: Delivery | None, failure: DeliveryFailure | None, delivery_rules: DeliveryRules
) -> Decision:
    """Combine the lookup, row and failure into a decision."""
    failed = failure if failure and failure.kind == FailureKind.FAILED else None
    if found.is_directory:
        return Decision("absent", "This is a directory. Ask for one of the files in it.")
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
    if row.generation < delivery_rules.floor:
        return Decision("cleared", "A re-sync has cleared its record: the client had it, and gets it again.")
    return _held(found, row, delivery_rules)


def _left_out(why: Skipped, row: Delivery | None, failed: DeliveryFailure | None) -> Decision:
    message = f"Not sent: {_tail(why.message)}"
    if why.cause == TRANSFORM_FAILED:
        return Decision("failed", message)
    if row is None or why.cause == "rules":  # rules that cannot be applied block all sends and deletes
        return Decision("left out", message)
    if failed:
        return Decision(
            "failed", f"{message} The client still has it, and has not accepted its deletion: {_tail(failed.message)}"
        )
    return Decision("waiting", f"{message} The client still has it from before, until it is told of the deletion.")


def _gone(row: Delivery | None, failed: DeliveryFailure | None) -> Decision:
    """The file is not in the repository."""
    if row is None:
        message = "There is no such file: it never was there, or the client has accepted its deletion."
        return Decision("absent", message)
    if failed:
        message = f"Deleted in the repository, and the client has not accepted that: {_tail(failed.message)}"
        return Decision("failed", message)
    if row.kind == Kind.DELETE:
        return Decision("in doubt", "Deleted in the repository; the client was told and has not acknowledged it.")
    return Decision("waiting", "Deleted in the repository; the client still has it, until it is told of the deletion.")


def _never_told(found: FileLookup, failure: DeliveryFailure | None) -> Decision:
    if failure and failure.kind == FailureKind.SKIPPED:
        return Decision("left out", f"Not sent: {_tail(failure.message)}")
    if failure:
        return _not_delivered(failure)
    if found.unknown:
        return Decision(
            "unknown",
            f"The client was told of no such file. What the repository has is not known here: {_tail(found.unknown)}",
        )
    return Decision("waiting", "Not sent yet: the repository has it, and the next sync sends it.")


def _in_doubt(found: FileLookup, row: Delivery, failed: DeliveryFailure | None) -> Decision:
    if failed:
        return _not_delivered(failed)
    if row.kind == Kind.DELETE:
        again = "; the file is there again, and is sent" if found.entry else ""
        message = f"The client was told that it is deleted, and has not acknowledged that{again}."
        return Decision("in doubt", message)
    return Decision("in doubt", "The client was told of it and has not acknowledged it: it is told again.")


def _held(found: FileLookup, row: Delivery, delivery_rules: DeliveryRules) -> Decision:
    """The client's acknowledgement is current."""
    if found.entry is None:
        message = f"Delivered: the client acknowledged what it was told last. What the repository has is not known here: {_tail(found.unknown)}"
        return Decision("delivered", message)
    if row.source_key == delivery_rules.source_key(found.entry.blob, found.path.decode()):
        return Decision("delivered", "Delivered: the client has acknowledged exactly what the repository has.")
    if row.source_key is None:
        return Decision("waiting", "The client had it before Docora kept records; the next sync compares the contents.")
    return Decision("waiting", "The client has an older content; the next sync sends what the repository has.")


def _not_delivered(failure: DeliveryFailure) -> Decision:
    return Decision("failed", f"Not delivered: {_tail(failure.message)}")


def _made_from(source: str) -> Decision:
    return Decision("absent", f"The repository has no such file: transforms make it of {source}. Ask about that one.")


def _tail(message: str) -> str:
    """Lowercase a sentence so that it can follow a colon."""
    return message[:1].lower() + message[1:] if message[1:2].islower() or message.startswith("A ") else message
