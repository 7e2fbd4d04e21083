"""Change files on their way to the apps.

`FILE_TRANSFORMS` lists callables that may give a file another path or other content, or drop it. They run in list
order, and the result of the last one is sent.

    class StripComments:
        name = "strip-comments"
        version = 2

        def __call__(self, file: SourceFile) -> SourceFile | None: ...

A transform must be deterministic and fast: it runs when a sync is planned and again when the file is sent, while the
worker holds the watch's lease. A process runs one transform at a time, so it need not be thread-safe. Raise its version
whenever its result may differ for the same file. Every file is then transformed again, and the files that changed are
sent.
"""

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file: its path from the repository's root, separated by `/`, and its whole content."""

    path: str
    content: bytes


class Transform(Protocol):
    """A callable that `FILE_TRANSFORMS` names and whose attributes have been checked."""

    name: str
    version: str | int

    def __call__(self, file: SourceFile) -> SourceFile | None: ...


class TransformFailed(Exception):
    """A transform failed on one file. The message contains nothing of the file's content."""


@dataclass(frozen=True)
class Transforms:
    """The active transforms. `problem` says why they cannot be used; it is empty if they can."""

    steps: tuple[Transform, ...] = ()
    problem: str = ""

    def __bool__(self) -> bool:
        return bool(self.steps or self.problem)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the transforms' names and versions, in order. Empty without transforms."""
        parts = [f"{step.name}\0{step.version}" for step in self.steps] or [self.problem]
        return hashlib.sha256("\1".join(parts).encode()).hexdigest() if self else ""

    def apply(self, file: SourceFile) -> SourceFile | None:
        """Return the file to send instead, or None if it is dropped. Raises `TransformFailed`."""
        source = file.path
        for step in self.steps:
            try:
                with _one_at_a_time:
                    result = step(file)
            except (Exception, SystemExit) as error:  # sys.exit() in a library must not end the sync
                logger.exception("transform_failed", extra={"transform": step.name, "path": source})
                raise TransformFailed(f"Transform {step.name} failed: {type(error).__name__}.") from error
            if result is None:
                return None
            if not (
                isinstance(result, SourceFile) and isinstance(result.path, str) and isinstance(result.content, bytes)
            ):
                raise TransformFailed(f"Transform {step.name} did not return a SourceFile or None.")
            file = result
        return file


NONE = Transforms()


def active() -> Transforms:
    """Return the transforms that the settings name. Never raises; see `Transforms.problem`."""
    return _load(tuple(settings.FILE_TRANSFORMS))


@lru_cache(maxsize=8)
def _load(dotted_paths: Sequence[str]) -> Transforms:
    steps = []
    for dotted_path in dotted_paths:
        try:
            imported = import_string(dotted_path)
            step = imported() if isinstance(imported, type) else imported
        except Exception as error:
            return Transforms(problem=f"FILE_TRANSFORMS names {dotted_path!r}, which cannot be imported: {error}")
        problem = _find_problem(step)
        if problem:
            return Transforms(problem=f"FILE_TRANSFORMS names {dotted_path!r}, which {problem}.")
        steps.append(step)
    return Transforms(tuple(steps))


def _find_problem(step: Any) -> str:
    if not callable(step):
        return "is not callable"
    name, version = getattr(step, "name", None), getattr(step, "version", None)
    if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
        return "has no attribute `name` of 1 to 100 printable characters"
    if isinstance(version, bool) or not isinstance(version, str | int) or version == "":
        return "has no attribute `version` that is a string or an integer"
    return ""


@register
def check_transforms(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    problem = active().problem
    hint = "A transform is a callable with a `name` and a `version`; see deliveries_app/planning/transforms.py."
    return [Error(problem, hint=hint, id="docora.E010")] if problem else []
