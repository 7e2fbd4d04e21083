"""Transforms as an administrator might write them, named by dotted path in `FILE_TRANSFORMS`."""

from collections.abc import Mapping
from dataclasses import replace

from deliveries_app.planning import transforms
from deliveries_app.planning.transforms import SourceFile, TransformFailed, Transforms


def put_into_use(settings, *names: str) -> Transforms:
    """Name these of this module in the settings, as if the process had just started."""
    transforms._load.cache_clear()
    settings.FILE_TRANSFORMS = [f"{__name__}.{name}" for name in names]
    return transforms.active()


def made_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What the transforms in use make of these files, by plain dictionaries; the first source by path wins."""
    made: dict[str, bytes] = {}
    for path in sorted(files, key=str.encode):
        try:
            file = transforms.active().apply(SourceFile(path, files[path]))
        except TransformFailed:
            continue
        if file is not None:
            made.setdefault(file.path, file.content)
    return made


class Shout:
    """Text in capitals; `version` is raised by tests."""

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
    """`a` and `b` change places."""

    name = "swap"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, path={"a": "b", "b": "a"}.get(file.path, file.path))


class Flatten:
    """Every file in one directory."""

    name = "flatten"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, path=f"flat/{file.path.rpartition('/')[2]}")


class Picky:
    """Fails for contents that hold `poison`, and says them in its message."""

    name = "picky"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if b"poison" in file.content:
            raise ValueError(f"cannot take {file.content!r}")
        return file


class Quits:
    """Ends the process for contents that hold `poison`, as some libraries do."""

    name = "quits"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if b"poison" in file.content:
            raise SystemExit(3)
        return file


class ByContent:
    """A first line `path: …` says where the file goes."""

    name = "by-content"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        if not file.content.startswith(b"path: "):
            return file
        return replace(file, path=file.content.partition(b"\n")[0][6:].decode("utf-8", "surrogateescape"))


class Expand:
    """A hundred times as long."""

    name = "expand"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, content=file.content * 100)


class Shorten:
    name = "shorten"
    version = 1

    def __call__(self, file: SourceFile) -> SourceFile:
        return replace(file, content=file.content[:10])


class Moody:
    """Another content each time it is asked."""

    name = "moody"
    version = 1
    asked = 0

    def __call__(self, file: SourceFile) -> SourceFile:
        Moody.asked += 1
        return replace(file, content=b"%d" % Moody.asked * 100)


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
