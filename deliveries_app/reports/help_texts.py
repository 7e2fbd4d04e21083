"""Labels and hints for the engine's short cause codes."""

from collections.abc import Mapping
from dataclasses import dataclass

from deliveries_app.models.root_causes import RootCause

SENT_ANYWAY = {"lfs_pointer", "ignore_pattern"}
"""Causes that are listed although the file is sent."""

LEFT_OUT: dict[str, tuple[str, str]] = {
    "symlink": ("Symbolic links", "Links are not sent. The file a link points to is sent if it is in the repository."),
    "submodule": ("Submodules", "A submodule is another repository. Let the app watch that one if it needs the files."),
    "too_large": ("Too large", "Larger than MAX_FILE_BYTES. An administrator can raise this limit."),
    "path_too_long": ("Path too long", "Longer than 1,024 bytes. Use a shorter path."),
    "not_utf8": ("Path is not UTF-8", "JSON cannot carry the path. Rename the file in the repository."),
    "unsafe_path": (
        "Unsafe path",
        "The path leads outside the client's folder or into its .git directory. Rename the file.",
    ),
    "ignored": (
        "Ignored",
        "Matched by .docoraignore or by the patterns below. Files sent earlier are deleted at the client.",
    ),
    "transform": ("Dropped by a transform", "One of FILE_TRANSFORMS drops the file."),
    "collision": ("Same path", "A transform gave it the path of another file. Only one of them is sent."),
    "ignore_pattern": (
        "Invalid patterns",
        "Lines of .docoraignore that are not valid patterns. All other lines apply.",
    ),
    "lfs_pointer": ("Git LFS pointers", "Sent as committed: the small pointer, not the large file it stands for."),
    "other": ("Other", "See the list below."),
}
"""Cause → label and explanation."""

GIT_HINTS = {
    "auth": "Replace the token on the watched repository's page. The sync then starts at once.",
    "not_found": "If it was moved or renamed, let the app watch the new URL. If it was deleted, unwatch it.",
    "timeout": "Once the git host has recovered, reset the circuit to retry at once.",
    "network": "Once the git host is reachable again, reset the circuit to retry at once.",
    "too_large": "Shrink the repository or raise the limit, then reset the circuit to retry at once.",
    "corrupt": "No action is needed unless this keeps happening. Then check the disk of REPOS_DIR.",
    "other": "See Docora's log for details. Reset the circuit to retry at once.",
}
"""Git failure cause → suggested action. The failure's message explains the cause."""


ROOT_HINTS: dict[RootCause, str] = {
    RootCause.DNS: "The host name in the app's base URL cannot be resolved. Correct it on the app's page or fix DNS; "
    "then retry.",
    RootCause.TLS: "The endpoint's certificate has expired, is for another name, or is sent without its chain. Ask the "
    "app's operators to fix it, then retry.",
    RootCause.CONNECTION: "The connection is refused or lost. Check that the app is running and that Docora can "
    "reach it. Docora retries automatically.",
    RootCause.TIMEOUT: "The app takes longer than 30 seconds to respond. It should store what it receives and respond at "
    "once. If it is slow, allow it fewer concurrent notifications on its page.",
    RootCause.REFUSED: "The app rejects the signature, or a proxy in front of it requires authentication. Send a test ping "
    "from the app's page, and rotate the signing key if the app has lost it.",
    RootCause.CLIENT_ERROR: "The app rejects the request. 404 often means a wrong base URL, 413 a size limit, 429 too many "
    "requests. 410 pauses the app. Check the response, fix the app, then retry.",
    RootCause.SERVER_ERROR: "The app fails, or a proxy in front of it cannot reach it (502 to 504). Check the app's log. "
    "Docora retries automatically. Once it's fixed, retry now.",
    RootCause.UNEXPECTED: "Only 2xx counts as accepted, and redirects are not followed. Set the base URL to the target "
    "of the redirect, then retry.",
    RootCause.ADDRESS: "Docora does not call private addresses. Use a public base URL, or ask an administrator to add "
    "the network to ALLOWED_PRIVATE_NETWORKS; then retry.",
    RootCause.GIT_AUTH: "The git host rejects the token: it has expired, was revoked, or cannot read this repository. "
    "Replace it on the watched repository's page. The sync then starts at once.",
    RootCause.GIT_NOT_FOUND: "If it was moved or renamed, let the app watch the new URL. If it is private, add a token. "
    "If it was deleted, unwatch it.",
    RootCause.GIT_HOST: "The git host does not respond or is too slow. Docora retries automatically. Once it has "
    "recovered, retry now.",
    RootCause.GIT_CONTENT: "The repository is too large, or the fetched data is damaged; the message says which. Raise "
    "the limit or shrink the repository, then retry. Docora fetches damaged data again.",
    RootCause.RULES: "Nothing is sent while .docoraignore, the patterns or a transform cannot be applied. Fix what the "
    "message names, then retry.",
    RootCause.INTERNAL: "An internal error, a lost encryption key, or a killed worker. Check the worker's log "
    "and memory, then retry.",
}
"""Root cause → suggested action."""


@dataclass(frozen=True)
class LeftOut:
    """Number of files left out for one cause."""

    name: str
    meaning: str
    count: int


def left_out(counts: Mapping[str, int]) -> list[LeftOut]:
    """Return a tree's `left_out` counts in display order."""
    known = [*LEFT_OUT, *(cause for cause in counts if cause not in LEFT_OUT)]
    return [
        LeftOut(*LEFT_OUT.get(cause, (cause.replace("_", " ").capitalize(), "")), counts[cause])
        for cause in known
        if counts.get(cause)
    ]


def number_left_out(counts: Mapping[str, int]) -> int:
    """Return the number of files that are not sent."""
    return sum(count for cause, count in counts.items() if cause not in SENT_ANYWAY)
