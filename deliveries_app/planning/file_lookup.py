"""Look up one path in a commit and explain whether it is delivered.

It reads only the local mirror, fetches nothing, waits for no lock, and gives up if git prints nothing for a few seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deliveries_app.models import AppRepository
from deliveries_app.planning.eligibility import (
    LFS_POINTER_BYTES,
    Skipped,
    reason_after_transforms,
    reason_to_skip,
    remark_on,
)
from deliveries_app.planning.ignore_rules import FILE_NAME, PatternRules, deciding_line, read_rules
from deliveries_app.planning.plan import DeliveryRules, PlanRefused
from deliveries_app.planning.transforms import SourceFile, TransformFailed, Transforms
from docora.text import clean_text
from repositories_app import services as repositories
from repositories_app.git.exceptions import Cause, GitError
from repositories_app.mirror import tree
from repositories_app.mirror.blobs import BlobReader
from repositories_app.mirror.tree import DIRECTORY, Entry

SECONDS = 5.0  # without output from git
MAX_TRANSFORM_BYTES = 4_000_000
"""Larger files are not run through the transforms here."""
TRANSFORM_FAILED = "transform_failed"


@dataclass(frozen=True)
class FileLookup:
    """What `commit` contains at `path`: `entry`, or None if there is nothing.

    `unknown` says why the commit could not be read. `left_out` says why the file is not sent. `sent_as` is the path it is
    sent under, empty if unknown. `remark` is the row's remark.
    """

    path: bytes
    commit: str
    unknown: str = ""
    entry: Entry | None = None
    left_out: Skipped | None = None
    sent_as: str = ""
    remark: str = ""

    @property
    def is_directory(self) -> bool:
        return self.entry is not None and self.entry.mode == DIRECTORY


def look_up(watch: AppRepository, delivery_rules: DeliveryRules, commit: str, paths: Sequence[bytes]) -> FileLookup:
    """Look up the first of `paths` that exists in the commit and apply the delivery rules to it."""
    nothing = FileLookup(paths[0], commit)
    if not commit:
        return replace(nothing, unknown="The repository hasn't been synced yet.")
    mirror = repositories.mirror_of(watch.repository)
    try:
        with mirror.in_use_nowait(), mirror.blobs(timeout=SECONDS) as reader:
            if not reader.has(commit):
                return replace(nothing, unknown="The mirror on this server doesn't contain this commit.")
            entries = tree.entries(reader, commit, paths)
            entry = next((entries[path] for path in paths if path in entries), None)
            if entry is None:
                return nothing
            found = FileLookup(entry.path, commit, entry=entry)
            return found if found.is_directory else _apply_rules(found, entry, delivery_rules, reader)
    except GitError as error:
        slow = "Git is too slow on this server right now. Try again shortly."
        return replace(nothing, unknown=slow if error.cause is Cause.TIMEOUT else str(error))


def _apply_rules(found: FileLookup, entry: Entry, delivery_rules: DeliveryRules, reader: BlobReader) -> FileLookup:
    try:
        rules = read_rules(reader, found.commit, delivery_rules)
        if reason := reason_to_skip(entry, delivery_rules.max_file_bytes, rules.check):
            return replace(found, left_out=reason if reason.message else _explain(reason, entry, rules))
    except PlanRefused as error:
        return replace(found, left_out=Skipped(entry.path, error.cause, str(error)))
    if delivery_rules.transforms.problem:
        return replace(found, left_out=Skipped(entry.path, "transform", delivery_rules.transforms.problem))
    if entry.size > (MAX_TRANSFORM_BYTES if delivery_rules.transforms else LFS_POINTER_BYTES):
        return found if delivery_rules.transforms else replace(found, sent_as=entry.path.decode())
    [content] = reader.read([entry.blob])
    found = replace(found, remark=remark_on(entry.size, content))
    return _transform(found, SourceFile(entry.path.decode(), content), delivery_rules)


def _explain(reason: Skipped, entry: Entry, rules: PatternRules) -> Skipped:
    """Return the reason with a message that names the pattern which leaves out the file. Raises `PlanRefused`."""
    if reason.cause == "not_included":
        return replace(reason, message="None of the app's include patterns matches it.")
    is_excluded = reason.cause == "excluded"
    matching = rules.excluded if is_excluded else rules.ignored
    line = deciding_line(matching.patterns, entry) if matching else None
    assert line
    pattern, matched = line
    if is_excluded:
        source, verb = "the app's exclude patterns", "excludes"
    else:
        source, verb = FILE_NAME if pattern.in_file else "the watch's patterns", "ignores"
    target = "it" if matched == entry.path else f"the directory {clean_text(matched, 200)}"
    message = f'Line {pattern.number} of {source} ("{clean_text(pattern.text, 60)}") {verb} {target}.'
    return replace(reason, message=message)


def _transform(found: FileLookup, file: SourceFile, delivery_rules: DeliveryRules) -> FileLookup:
    """Run the transforms one by one, so that the message can name the one responsible."""

    def left_out(cause: str, message: str) -> FileLookup:
        return replace(found, left_out=Skipped(found.path, cause, message))

    for step in delivery_rules.transforms.steps:
        try:
            result = Transforms((step,)).apply(file)
        except TransformFailed as error:
            return left_out(TRANSFORM_FAILED, f"{error} The client keeps what it has of this file.")
        if result is None:
            return left_out("transform", f"The transform {step.name} drops it.")
        file = result
    reason = reason_after_transforms(found.path, file.path, len(file.content), delivery_rules.max_file_bytes)
    return replace(found, left_out=reason) if reason else replace(found, sent_as=file.path)
