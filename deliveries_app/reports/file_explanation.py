"""Explain why a file was or was not sent."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deliveries_app.actors import Actor
from deliveries_app.models import AppRepository, Delivery, DeliveryFailure, FailureKind
from deliveries_app.models.deliveries import Kind, path_digest
from deliveries_app.permissions import Permission
from deliveries_app.planning.delivery_rows import delivery_rules_of
from deliveries_app.planning.eligibility import Skipped
from deliveries_app.planning.file_lookup import TRANSFORM_FAILED, FileLookup, look_up
from deliveries_app.planning.plan import DeliveryRules
from deliveries_app.reports.next_attempt import NextAttempt, next_attempt_of
from docora.text import lower_first

_ROWS = 10  # transforms may have made several files from one
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class Decision(NamedTuple):
    """The state of a file, and a message that explains it.

    `state` is one of `delivered`, `waiting`, `in doubt`, `cleared`, `failed`, `left out`, `absent` or `unknown`.
    """

    state: str
    message: str


@dataclass(frozen=True)
class Explanation:
    """The result of the lookup, the delivery `row` and the `failure`, with the `decision` that follows from them.

    `next_attempt` is None if nothing has to be sent. `made_from` is the source file if a transform creates this path.
    """

    watch: AppRepository
    path: str
    decision: Decision
    found: FileLookup
    row: Delivery | None
    failure: DeliveryFailure | None
    next_attempt: NextAttempt | None
    made_from: str = ""

    @property
    def sent_path(self) -> str:
        """The file's path at the client."""
        return self.row.path if self.row else self.found.sent_as or self.path


def explain(actor: Actor, watch: AppRepository, path: str) -> Explanation:
    """Explain one path. Reads this machine's mirror at the commit that is being synced or was synced last, without fetching.

    Bytes that are not UTF-8 are written as the pages show them: `caf\\xe9`.
    """
    actor.require_watch(watch, Permission.VIEW_WATCHES, Permission.CHANGE_WATCHES)  # as the page of the watch
    paths = _possible_paths(path)
    delivery_rules = delivery_rules_of(watch)
    found = look_up(watch, delivery_rules, _commit(watch), paths)
    row = _row(watch, found, paths)
    failure = _failure(watch, found, row, paths)
    made_from = row.source_path if row and found.entry is None and row.source_path not in {"", row.path} else ""
    decision = decide(found, row, failure, delivery_rules)
    if made_from:
        decision = Decision("absent", f"The repository has no such file. A transform creates it from {made_from}.")
    next_attempt = None
    if decision.state in {"waiting", "in doubt", "cleared", "failed"}:
        current = AppRepository.objects.with_state().for_list().get(pk=watch.pk)
        next_attempt = next_attempt_of(current, hold_until=row.hold_until if row else None)
    return Explanation(watch, path, decision, found, row, failure, next_attempt, made_from)


def _possible_paths(path: str) -> list[bytes]:
    """Return the byte paths that the text may stand for: first the literal one, then with escapes decoded."""
    literal = path.encode("utf-8", "surrogatepass")
    unescaped = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), literal)
    return [literal] if unescaped == literal else [literal, unescaped]


def _commit(watch: AppRepository) -> str:
    """Return the commit of the open run, else the last synced commit, else the last one attempted."""
    started = watch.runs.exclude(commit_sha="").order_by("-generation", "-pk").values_list("commit_sha", flat=True)
    return started.filter(outcome="").first() or watch.last_commit or started.first() or ""


def _row(watch: AppRepository, found: FileLookup, paths: Sequence[bytes]) -> Delivery | None:
    """Return the file's delivery row, or that of a transform's output at this path if the repository has no such file."""
    # An empty `source_path` means that no transform made the file, so an empty path would match every file.
    decoded = [path.decode("utf-8", "replace").replace("\0", "") for path in paths if path]
    texts = [text for text in decoded if text.encode() in paths]
    made_from_file = Delivery.objects.filter(watch=watch, source_path__in=texts)
    at_path = Delivery.objects.filter(watch=watch, path__in=[*texts, found.sent_as])
    rows = sorted([*made_from_file[:_ROWS], *at_path[:_ROWS]], key=lambda row: row.path != found.sent_as)
    own = (row for row in rows if row.source_path in {"", *texts})
    return next(own, rows[0] if rows and found.entry is None else None)


def _failure(
    watch: AppRepository, found: FileLookup, row: Delivery | None, paths: Sequence[bytes]
) -> DeliveryFailure | None:
    possible = {*paths, *(text.encode() for text in (found.sent_as, row.path if row else "") if text)}
    listed = DeliveryFailure.objects.filter(watch=watch, path_digest__in=[path_digest(path) for path in possible])
    return listed.order_by("kind").first()  # failed before skipped


def decide(
    found: FileLookup, row: Delivery | None, failure: DeliveryFailure | None, delivery_rules: DeliveryRules
) -> Decision:
    """Decide from the lookup, the row and the failure what happened to the file."""
    failed = failure if failure and failure.kind == FailureKind.FAILED else None
    if found.is_directory:
        return Decision("absent", "This is a directory. Enter the path of a file.")
    if found.left_out:
        return _left_out(found.left_out, row, failed)
    if found.entry is None and not found.unknown:
        return _absent(row, failed)
    if row is None:
        return _never_sent(found, failure)
    if not row.acknowledged:
        return _in_doubt(found, row, failed)
    if failed:
        return _not_delivered(failed)
    if row.generation < delivery_rules.floor:
        return Decision("cleared", "A re-sync cleared the record of this file. The next sync sends it again.")
    return _acknowledged(found, row, delivery_rules)


def _left_out(why: Skipped, row: Delivery | None, failed: DeliveryFailure | None) -> Decision:
    message = f"Not sent: {lower_first(why.message)}"
    if why.cause == TRANSFORM_FAILED:
        return Decision("failed", message)
    if row is None or why.cause == "rules":  # rules that cannot be applied block all sends and deletes
        return Decision("left out", message)
    if failed:
        return Decision(
            "failed",
            f"{message} The client still has it, because its deletion failed: {lower_first(failed.message)}",
        )
    return Decision("waiting", f"{message} The client still has an earlier copy. The next sync deletes it.")


def _absent(row: Delivery | None, failed: DeliveryFailure | None) -> Decision:
    """Explain a file that is not in the repository."""
    if row is None:
        return Decision("absent", "There is no such file in the repository or at the client.")
    if failed:
        message = f"Deleted in the repository, but the deletion failed at the client: {lower_first(failed.message)}"
        return Decision("failed", message)
    if row.kind == Kind.DELETE:
        return Decision("in doubt", "Deleted in the repository. The client hasn't acknowledged the deletion yet.")
    return Decision("waiting", "Deleted in the repository. The next sync deletes it at the client.")


def _never_sent(found: FileLookup, failure: DeliveryFailure | None) -> Decision:
    if failure and failure.kind == FailureKind.SKIPPED:
        return Decision("left out", f"Not sent: {lower_first(failure.message)}")
    if failure:
        return _not_delivered(failure)
    if found.unknown:
        return Decision(
            "unknown",
            f"Never sent to the client. The repository couldn't be checked: {lower_first(found.unknown)}",
        )
    return Decision("waiting", "Not sent yet. The next sync sends it.")


def _in_doubt(found: FileLookup, row: Delivery, failed: DeliveryFailure | None) -> Decision:
    if failed:
        return _not_delivered(failed)
    if row.kind == Kind.DELETE:
        again = " The repository has the file again. The next sync sends it." if found.entry else ""
        return Decision("in doubt", f"The client hasn't acknowledged its deletion.{again}")
    if row.updated_at == row.delivered_at:  # it was acknowledged last, and not announced since
        return Decision("in doubt", "The client acknowledged it, but the next sync sends it again.")
    return Decision("in doubt", "Sent, but not acknowledged by the client. The next sync sends it again.")


def _acknowledged(found: FileLookup, row: Delivery, delivery_rules: DeliveryRules) -> Decision:
    """Explain a file that the client has acknowledged."""
    if found.entry is None:
        message = (
            "Delivered: the client acknowledged the last notification. The repository couldn't be checked for changes"
        )
        return Decision("delivered", f"{message}: {lower_first(found.unknown)}")
    if row.source_key == delivery_rules.source_key(found.entry.blob, found.path.decode()):
        return Decision("delivered", "Delivered: the client has acknowledged the current version.")
    if row.source_key is None:
        return Decision("waiting", "Sent by the previous service. The next sync compares the contents.")
    return Decision("waiting", "The client has an older version. The next sync sends the current one.")


def _not_delivered(failure: DeliveryFailure) -> Decision:
    return Decision("failed", f"Not delivered: {lower_first(failure.message)}")
