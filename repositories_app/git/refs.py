"""Parse the name of the branch or tag that a watch follows. Pure.

An empty name follows HEAD, which is the repository's default branch.
"""

import re

MAX_LENGTH = 255
HEAD = "HEAD"
_BRANCHES, _TAGS = "refs/heads/", "refs/tags/"
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")
_BAD_SEQUENCE = re.compile(r"\.\.|@\{|//|(?:^|/)\.|\.lock(?:/|$)|^[-/]|[/.]$|^@$")


class InvalidRef(ValueError):
    """A name that no branch or tag can have. The message says why."""


def parse_ref(text: str) -> str:
    """Return the name of a branch or tag (`main`, `v1.2`, `refs/heads/main`, `refs/tags/v1.2`), or empty for HEAD.

    The rules are those of `git check-ref-format`. A name can't start with a dash either, because commands would read it as
    an option. Raises `InvalidRef`.
    """
    ref = text.strip(" \t\r\n")
    if ref in {"", HEAD}:
        return ""
    if len(ref) > MAX_LENGTH:
        raise InvalidRef(f"The branch or tag must have at most {MAX_LENGTH} characters.")
    if not ref.isprintable() or _FORBIDDEN.search(ref):
        raise InvalidRef("A branch or tag can't contain spaces, control characters or any of ~ ^ : ? * [ \\")
    if _BAD_SEQUENCE.search(ref):
        raise InvalidRef(
            "A branch or tag can't start with a dash or a slash, end with a slash, a dot or .lock, or contain .., // or @{. "
            "None of its parts can start with a dot."
        )
    if ref.startswith("refs/") and not ref.startswith((_BRANCHES, _TAGS)):
        raise InvalidRef("Only branches (refs/heads/…) and tags (refs/tags/…) can be watched.")
    return ref


def full_names(ref: str) -> list[str]:
    """Return the full names that a ref may mean, the preferred one first: a short name is a branch before it is a tag."""
    if not ref:
        return [HEAD]
    return [ref] if ref.startswith("refs/") else [_BRANCHES + ref, _TAGS + ref]


def short_name(full_name: str) -> str:
    """Return the name of a branch or tag as people write it."""
    return full_name.removeprefix(_BRANCHES).removeprefix(_TAGS)


def is_tag(full_name: str) -> bool:
    return full_name.startswith(_TAGS)


def describe(ref: str) -> str:
    """Return what a ref names, for a message: `branch or tag named "v1"`."""
    kind = "branch" if ref.startswith(_BRANCHES) else "tag" if ref.startswith(_TAGS) else "branch or tag"
    return f'{kind} named "{short_name(ref)}"'
