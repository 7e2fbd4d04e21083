"""What a commit has at one path, and what the rules make of it: for the page that explains a single file.

It reads the mirror as it lies on this machine, fetches nothing, waits for nobody, and gives git a few seconds for each
question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deliveries_app.models import AppRepository
from deliveries_app.planning.eligibility import Skipped, reason_by_path, reason_to_skip, remark_on, too_large
from deliveries_app.planning.ignore_rules import FILE_NAME, IgnoredBy, content_of_file, ignored_by, rules_of
from deliveries_app.planning.paths import MAX_PATH_BYTES
from deliveries_app.planning.plan import DeliveryRules, PlanRefused
from deliveries_app.planning.transforms import SourceFile, TransformFailed, Transforms, name_of
from docora.text import clean_text
from repositories_app import services as repositories
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror.mirror import DIRECTORY, Entry, Mirror

SECONDS = 5.0  # for each question to git
MAX_TRIED_BYTES = 4_000_000
"""Larger files are not put through the transforms to see what becomes of them."""
TRANSFORM_FAILED = "transform_failed"
_POINTER_BYTES = 1024  # a Git LFS pointer is shorter


@dataclass(frozen=True)
class FileLookup:
    """What lies at `path` in `commit`: the `entry`, None for nothing. `unknown` says in a sentence why that cannot be told.

    `left_out` says why it is not sent, `ignored_by` which line says so, `sent_as` the path that it is sent under (empty
    where that cannot be told), `remark` what is special about it.
    """

    path: bytes
    commit: str
    unknown: str = ""
    entry: Entry | None = None
    left_out: Skipped | None = None
    ignored_by: IgnoredBy | None = None
    sent_as: str = ""
    remark: str = ""

    @property
    def is_directory(self) -> bool:
        return self.entry is not None and self.entry.mode == DIRECTORY


def look(watch: AppRepository, delivery_rules: DeliveryRules, commit: str, paths: Sequence[bytes]) -> FileLookup:
    """What the commit has at the first of these paths that it has anything at."""
    nothing = FileLookup(paths[0], commit)
    if not commit:
        return replace(nothing, unknown="It has not been synced yet.")
    mirror = repositories.mirror_of(watch.repository)
    try:
        with mirror.glance():
            if not mirror.has(commit, timeout=SECONDS):
                return replace(nothing, unknown="The mirror on this machine does not hold this commit.")
            entries = (mirror.entry(commit, path, timeout=SECONDS) for path in paths)
            entry = next((entry for entry in entries if entry is not None), None)
            if entry is None:
                return nothing
            found = FileLookup(entry.path, commit, entry=entry)
            return found if found.is_directory else _by_the_rules(found, entry, delivery_rules, mirror)
    except GitError as error:
        slow = "git takes too long on this machine. Ask again in a moment."
        return replace(nothing, unknown=slow if error.cause is Cause.TIMEOUT else str(error))


def _by_the_rules(found: FileLookup, entry: Entry, delivery_rules: DeliveryRules, mirror: Mirror) -> FileLookup:
    try:
        file = content_of_file(mirror, found.commit, timeout=SECONDS)
        rules_of(file, delivery_rules.patterns)
    except PlanRefused as error:
        return replace(found, left_out=Skipped(entry.path, error.cause, str(error)))
    if len(entry.path) <= MAX_PATH_BYTES and (line := ignored_by(file, delivery_rules.patterns, entry)):
        return replace(found, left_out=Skipped(entry.path, "ignored", _words_for(line, entry.path)), ignored_by=line)
    if reason := reason_to_skip(entry, delivery_rules.max_file_bytes):
        return replace(found, left_out=reason)
    if delivery_rules.transforms.problem:
        return replace(found, left_out=Skipped(entry.path, "transform", delivery_rules.transforms.problem))
    if entry.size > (MAX_TRIED_BYTES if delivery_rules.transforms else _POINTER_BYTES):
        return found if delivery_rules.transforms else replace(found, sent_as=entry.path.decode())
    content = mirror.content(entry.blob, timeout=SECONDS)
    found = replace(found, remark=remark_on(entry.size, content))
    return _transformed(found, SourceFile(entry.path.decode(), content), delivery_rules)


def _transformed(found: FileLookup, file: SourceFile, delivery_rules: DeliveryRules) -> FileLookup:
    """One transform after the other, to say which one it was."""

    def left_out(cause: str, words: str) -> FileLookup:
        return replace(found, left_out=Skipped(found.path, cause, words))

    for step in delivery_rules.transforms.steps:
        try:
            made = Transforms((step,)).apply(file)
        except TransformFailed as error:
            return left_out(TRANSFORM_FAILED, f"{error}. What the client holds of this file stays.")
        if made is None:
            return left_out("transform", f"The transform {name_of(step)} drops it.")
        file = made
    path = file.path.encode("utf-8", "surrogatepass")
    reason = reason_by_path(path)
    if reason is None and len(file.content) > delivery_rules.max_file_bytes:
        reason = too_large(path, len(file.content), delivery_rules.max_file_bytes)
    if reason is not None:
        return left_out(reason.cause, f"After its transforms: {reason.message}")
    return replace(found, sent_as=file.path)


def _words_for(line: IgnoredBy, path: bytes) -> str:
    source = FILE_NAME if line.in_file else "the watch's patterns"
    what = "it" if line.matched == path else f"the directory {clean_text(line.matched, 200)}"
    return f'Line {line.number} of {source} ("{clean_text(line.line, 60)}") ignores {what}.'
