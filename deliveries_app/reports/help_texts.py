"""Labels and hints for the engine's short cause codes."""

from collections.abc import Mapping
from dataclasses import dataclass

from deliveries_app.models.root_causes import RootCause

AS_IT_IS_NOT = {"lfs_pointer", "ignore_pattern"}
"""Causes that are reported although the file is sent."""

LEFT_OUT: dict[str, tuple[str, str]] = {
    "symlink": ("Symbolic links", "A link is not sent; the file that it points to is, if it lies in the repository."),
    "submodule": ("Submodules", "Another repository at this place. Let the app watch that one, if it wants its files."),
    "too_large": ("Too large", "Larger than MAX_FILE_BYTES. An administrator can raise it."),
    "path_too_long": ("Path too long", "Longer than 1,024 bytes. A shorter path is sent."),
    "not_utf8": ("Path is not UTF-8", "JSON cannot carry it. Rename the file in the repository."),
    "unsafe_path": ("Unsafe path", "It leads out of the client's folder, or into its .git. Rename the file."),
    "ignored": (
        "Ignored",
        "Matched by .docoraignore or by the patterns below, and deleted at the client if it was sent.",
    ),
    "transform": ("Dropped by a transform", "One of FILE_TRANSFORMS leaves it out."),
    "collision": ("Same path", "A transform gave it the path of another file; only one of them is sent."),
    "ignore_pattern": ("Patterns without meaning", "Lines of .docoraignore that cannot be read; the others hold."),
    "lfs_pointer": ("Git LFS pointers", "Sent as they stand in git: the small pointer, not the large file behind it."),
    "other": ("Other", "The list below says why."),
}
"""Cause → label and explanation."""

GIT_HINTS = {
    "auth": "Replace the token on the page of the watched repository: the sync then begins at once.",
    "not_found": "If it was moved or renamed, let the app watch the new address; if it is gone for good, unwatch it.",
    "timeout": "Once the git host is well again, resetting the circuit tries it at once.",
    "network": "Once the git host can be reached again, resetting the circuit tries it at once.",
    "too_large": "When it is smaller, or the limit is higher, resetting the circuit tries it at once.",
    "corrupt": "Nothing is to be done, unless it happens again and again: then look at the disk of REPOS_DIR.",
    "other": "Docora's log has more. Resetting the circuit tries it at once.",
}
"""Git failure cause → suggested action; the failure's message explains the cause."""


ROOT_HINTS: dict[RootCause, str] = {
    RootCause.DNS: "The host name in the app's base URL cannot be resolved. Correct it on the app's page or fix DNS; "
    "then retry.",
    RootCause.TLS: "The endpoint's certificate has expired, is for another name, or lacks its chain. The app's operators "
    "renew it; then retry.",
    RootCause.CONNECTION: "The connection is refused or breaks. Check that the app is running and that Docora can "
    "reach it. Docora retries automatically.",
    RootCause.TIMEOUT: "The app takes longer than 30 seconds. It should keep what it gets and answer at once; fewer "
    "notifications at a time, on the app's page, help a slow one.",
    RootCause.REFUSED: "The app does not accept the signature, or something before it asks for a sign-in. Send a test "
    "ping from the app's page, and rotate the signing key if the app has lost it.",
    RootCause.CLIENT_ERROR: "The app calls the request wrong. 404 is often a wrong base URL, 413 a limit on size, 429 too "
    "many requests; 410 pauses the app. Check the response, fix the app, then retry.",
    RootCause.SERVER_ERROR: "The app fails, or what stands before it does not reach it (502 to 504). Its log says why. "
    "Docora retries automatically. Once it's fixed, retry now.",
    RootCause.UNEXPECTED: "Only 2xx counts as accepted, and redirects are not followed. Set the base URL to where the "
    "redirect leads, then retry.",
    RootCause.ADDRESS: "Docora does not call private addresses. Use a public base URL, or let an administrator add the "
    "network to ALLOWED_PRIVATE_NETWORKS; then retry.",
    RootCause.GIT_AUTH: "The git host refuses the token: it has expired, was revoked, or may not read this repository. "
    "Replace it on the page of the watched repository: the sync then begins at once.",
    RootCause.GIT_NOT_FOUND: "If it was moved or renamed, let the app watch the new address; if it is private, give a "
    "token; if it is gone for good, unwatch it.",
    RootCause.GIT_HOST: "The git host does not respond, or too slowly. Docora retries automatically. Once it has "
    "recovered, retry now.",
    RootCause.GIT_CONTENT: "It is too large, or what was fetched is damaged. The message says which: raise the limit or "
    "make it smaller, then retry; what is damaged is fetched anew.",
    RootCause.RULES: "Nothing is sent while .docoraignore, the patterns or a transform cannot be applied. Change what the "
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
    return sum(count for cause, count in counts.items() if cause not in AS_IT_IS_NOT)
