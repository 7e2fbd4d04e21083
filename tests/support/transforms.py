"""Sample transforms, named by dotted path in `FILE_TRANSFORMS`."""

import os
import signal
from collections.abc import Mapping
from dataclasses import replace

from deliveries_app.planning import transforms
from deliveries_app.planning.transforms import SourceFile, TransformFailed, Transforms


def use_transforms(settings, *names: str) -> Transforms:
    """Activate these transforms, as if the process had just started with them."""
    transforms._load.cache_clear()
    settings.FILE_TRANSFORMS = [f"{__name__}.{name}" for name in names]
    return transforms.active()


def transformed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Apply the active transforms to these files. If several get the same path, the first source path wins."""
    result: dict[str, bytes] = {}
    for path in sorted(files, key=str.encode):
        try:
            file = transforms.active().apply(SourceFile(path, files[path]))
        except TransformFailed:
            continue
        if file is not None:
            result.setdefault(file.path, file.content)
    return result


class Shout:
    """Upper-case the content. Tests raise the `version`."""

    name = "shout"
    version: str | int = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, content=file.content.upper())


class DropDrafts:
    name = "drop-drafts"
    version = "2026-01"

    def __call__(self, file: SourceFile) -> SourceFile | None:
        return None if file.path.startswith("drafts/") else file


class Swap:
    """Swap `a` and `b`."""

    name = "swap"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, path={"a": "b", "b": "a"}.get(file.path, file.path))


class Flatten:
    """Move every file into one directory."""

    name = "flatten"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, path=f"flat/{file.path.rpartition('/')[2]}")


class Picky:
    """Fail for content that contains `poison`, with the content in the message."""

    name = "picky"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if b"poison" in file.content:
            raise ValueError(f"cannot take {file.content!r}")
        return file


class Quits:
    """Exit the process for content that contains `poison`, as some libraries do."""

    name = "quits"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if b"poison" in file.content:
            raise SystemExit(3)
        return file


class Kills:
    """Kill the process for content that contains `poison`, as a bug in a C library does."""

    name = "kills"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if b"poison" in file.content:
            os.kill(os.getpid(), signal.SIGKILL)
        return file


class ByContent:
    """Take the new path from a first line `path: …`."""

    name = "by-content"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if not file.content.startswith(b"path: "):
            return file
        return replace(file, path=file.content.partition(b"\n")[0][6:].decode("utf-8", "surrogateescape"))


class Expand:
    """Repeat the content a hundred times."""

    name = "expand"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, content=file.content * 100)


class Shorten:
    name = "shorten"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, content=file.content[:10])


class Nondeterministic:
    """Return different content each time."""

    name = "nondeterministic"
    version = 1
    calls = 0

    def __call__(self, file: SourceFile) -> SourceFile:
        Nondeterministic.calls += 1
        return replace(file, content=b"%d" % Nondeterministic.calls * 100)


class Nonsense:
    name = "nonsense"
    version = 1

    def __call__(self, file: SourceFile) -> str:
        return file.path


class Nameless:
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return file


class Unversioned:
    name = "unversioned"

    def __call__(self, file: SourceFile) -> SourceFile:
        return file


class Broken:
    name = "broken"
    version = 1

    def __init__(self) -> None:
        raise RuntimeError("no licence")


def as_function(file: SourceFile) -> SourceFile:
    return file


as_function.name = "as-function"  # type: ignore[attr-defined]
as_function.version = 3  # type: ignore[attr-defined]
not_callable = "a string"
