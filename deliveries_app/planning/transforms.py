"""Changing files on their way to the apps: `FILE_TRANSFORMS` names callables that may give a file another path or another
content, or drop it. They run in the order of the list, and what the last one gives back is what is sent.

    class StripComments:
        name = "strip-comments"
        version = 2

        def __call__(self, file: SourceFile) -> SourceFile | None: ...

A transform must be deterministic, and quick: it is asked when a sync is planned and again when the file is sent, and
its worker holds the repository meanwhile. Raise its version whenever it may give another answer for the same file: then
every file is looked at again, and those that come out different are sent.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file: its path from the repository's root with `/` between, and its whole content."""

    path: str
    content: bytes


class TransformFailed(Exception):
    """What a transform did to one file, in words that hold nothing of the file."""


@dataclass(frozen=True)
class Transforms:
    """The list in use. `problem` says in words why it cannot be used."""

    steps: tuple[Callable[[SourceFile], SourceFile | None], ...] = ()
    problem: str = ""

    def __bool__(self) -> bool:
        return bool(self.steps or self.problem)

    @cached_property
    def fingerprint(self) -> str:
        """Of the names and versions in their order; empty without transforms."""
        facts = [f"{name_of(step)}\0{version_of(step)}" for step in self.steps] or [self.problem]
        return hashlib.sha256("\1".join(facts).encode()).hexdigest() if self else ""

    def apply(self, file: SourceFile) -> SourceFile | None:
        """What is sent instead of the file, None for nothing. Raises `TransformFailed`."""
        source = file.path
        for step in self.steps:
            try:
                made = step(file)
            except (Exception, SystemExit) as error:  # a library that gives up must not take the run with it
                logger.exception("transform_failed", extra={"transform": name_of(step), "path": source})
                raise TransformFailed(f"Transform {name_of(step)} failed: {type(error).__name__}") from error
            if made is None:
                return None
            if not (isinstance(made, SourceFile) and isinstance(made.path, str) and isinstance(made.content, bytes)):
                raise TransformFailed(f"Transform {name_of(step)} gave back something other than a file.")
            file = made
        return file


NONE = Transforms()


def name_of(step: Any) -> str:
    return cast(str, step.name)


def version_of(step: Any) -> str:
    return str(step.version)


def active() -> Transforms:
    """Those that the settings name; never raises, see `Transforms.problem`."""
    return _load(tuple(settings.FILE_TRANSFORMS))


@lru_cache(maxsize=8)
def _load(dotted_paths: Sequence[str]) -> Transforms:
    steps = []
    for dotted in dotted_paths:
        try:
            found = import_string(dotted)
            step = found() if isinstance(found, type) else found
        except Exception as error:
            return Transforms(problem=f"FILE_TRANSFORMS names {dotted!r}, which cannot be imported: {error}")
        problem = _what_is_wrong(step)
        if problem:
            return Transforms(problem=f"FILE_TRANSFORMS names {dotted!r}, which {problem}.")
        steps.append(step)
    return Transforms(tuple(steps))


def _what_is_wrong(step: Any) -> str:
    if not callable(step):
        return "cannot be called"
    name, version = getattr(step, "name", None), getattr(step, "version", None)
    if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
        return "has no attribute `name` of 1 to 100 printable characters"
    if isinstance(version, bool) or not isinstance(version, str | int) or version == "":
        return "has no attribute `version` that is a string or a whole number"
    return ""


@register
def check_transforms(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    problem = active().problem
    hint = "A transform is a callable with a `name` and a `version`; see deliveries_app/planning/transforms.py."
    return [Error(problem, hint=hint, id="docora.E010")] if problem else []
