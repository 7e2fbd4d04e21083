"""Labels and hints for the engine's short cause codes."""

from collections.abc import Mapping

from deliveries_app.models.root_causes import RootCause
from deliveries_app.planning.eligibility import REMARKS

_NO_FILES = REMARKS | {"ignore_pattern"}
"""Counted like the causes, although no file is left out: remarks on files that are sent, and invalid lines."""

LEFT_OUT: dict[str, tuple[str, str]] = {
    "symlink": (
        "Symbolic links",
        "Symbolic links are not sent. The file a link points to is sent if it is in the repository.",
    ),
    "submodule": (
        "Submodules",
        "A submodule is a separate repository. If the app needs its files, watch that repository too.",
    ),
    "too_large": ("Too large", "Larger than MAX_FILE_BYTES. An administrator can raise the limit."),
    "path_too_long": ("Path too long", "Longer than 1,024 bytes. Shorten the path."),
    "not_utf8": ("Path is not UTF-8", "JSON can't represent the path. Rename the file in the repository."),
    "unsafe_path": (
        "Unsafe path",
        "The path leads outside the client's folder or into its .git directory. Rename the file.",
    ),
    "not_included": (
        "Not included",
        "The app has include patterns, and none of them matches. Files sent earlier are deleted at the client.",
    ),
    "excluded": (
        "Excluded by the app",
        "Matched by the app's exclude patterns. Files sent earlier are deleted at the client.",
    ),
    "ignored": (
        "Ignored",
        "Matched by .docoraignore or by this repository's ignore patterns. Files sent earlier are deleted at the client.",
    ),
    "transform": ("Dropped by a transform", "A transform in FILE_TRANSFORMS drops the file."),
    "collision": ("Path conflict", "A transform gave two files the same path. Only one of them is sent."),
    "ignore_pattern": (
        "Invalid patterns",
        "Lines in .docoraignore that aren't valid patterns. All other lines apply.",
    ),
    "lfs_pointer": ("Git LFS pointers", "Sent as committed: the pointer, not the large file it points to."),
    "other": ("Other", "Entries that are neither files, links nor submodules."),
}
"""Cause → label and explanation."""

GIT_HINTS = {
    "auth": "Replace the token on the watched repository's page. A sync then starts immediately.",
    "not_found": "If the repository was moved or renamed, watch the new URL. If it was deleted, stop watching it.",
    "timeout": "Once the git host has recovered, reset the circuit to retry now.",
    "network": "Once the git host is reachable again, reset the circuit to retry now.",
    "too_large": "Shrink the repository or raise the limit, then reset the circuit to retry now.",
    "corrupt": "Docora fetches the repository again. If this keeps happening, check the disk that holds REPOS_DIR.",
    "other": "See Docora's log for details. Reset the circuit to retry now.",
}
"""Git failure cause → suggested action. The failure's message explains the cause."""


ROOT_HINTS: dict[RootCause, str] = {
    RootCause.DNS: "The base URL's hostname doesn't resolve. Fix the URL in the app's settings or fix DNS, then retry.",
    RootCause.TLS: "The endpoint's certificate has expired, doesn't match its hostname, or is sent without its "
    "intermediate certificates. Ask the app's operators to fix it, then retry.",
    RootCause.CONNECTION: "Connections are refused or dropped. Check that the app is running and that this server can "
    "reach it. Docora retries automatically.",
    RootCause.TIMEOUT: "The app takes longer than 30 seconds to respond. It should store each notification and respond "
    "immediately. If it is overloaded, lower its concurrent requests in its settings.",
    RootCause.REFUSED: "The app rejected the signature, or a proxy in front of it required authentication. Send a test "
    "ping from the app's page. If the app has lost its signing key, rotate it.",
    RootCause.CLIENT_ERROR: "The app rejected the request. 404 often means a wrong base URL, 413 a size limit, and 429 a "
    "rate limit. Check the response, fix the app, then retry. 410 pauses the app: fix the app, then resume it.",
    RootCause.SERVER_ERROR: "The app, or a proxy in front of it, returned a server error. Check its logs. Docora retries "
    "automatically; once it's fixed, retry now.",
    RootCause.UNEXPECTED: "Only 2xx responses count as accepted, and redirects are not followed. If the app redirects, set "
    "the base URL to the redirect's target, then retry.",
    RootCause.ADDRESS: "Docora doesn't connect to private addresses. Use a public base URL, or ask an administrator to add "
    "the network to ALLOWED_PRIVATE_NETWORKS, then retry.",
    RootCause.GIT_AUTH: "The git host rejected the token: it has expired, was revoked, or can't read this repository. "
    "Replace it on the watched repository's page. A sync then starts immediately.",
    RootCause.GIT_NOT_FOUND: "If the repository was moved or renamed, watch the new URL. If it is private, add a token. If it "
    "was deleted, stop watching it. If only its branch or tag is gone, choose another one.",
    RootCause.GIT_HOST: "The git host is unreachable or too slow. Docora retries automatically; once it has recovered, "
    "retry now.",
    RootCause.GIT_CONTENT: "The repository is too large, or its data is damaged. Check the error message. If it is too "
    "large, raise the limit or shrink the repository, then retry. Docora fetches damaged data again automatically.",
    RootCause.RULES: "Nothing is sent while .docoraignore, the ignore patterns or a transform can't be applied. Fix the "
    "problem in the error message, then retry.",
    RootCause.QUOTA: "The app's repositories would have more files or bytes than its quota allows. The client keeps what it "
    "has. Raise the quota in the app's settings or leave out files, then retry.",
    RootCause.INTERNAL: "An internal error, a missing encryption key, or a killed worker. Check the worker's log and "
    "memory, then retry.",
}
"""Root cause → suggested action."""


def left_out(counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """Return the label, the explanation and the number of files of each cause in a tree's `left_out`, in display order."""
    known = [*LEFT_OUT, *(cause for cause in counts if cause not in LEFT_OUT)]
    return [
        (*LEFT_OUT.get(cause, (cause.replace("_", " ").capitalize(), "")), counts[cause])
        for cause in known
        if counts.get(cause)
    ]


def number_left_out(counts: Mapping[str, int]) -> int:
    """Return the number of files that are not sent."""
    return sum(count for cause, count in counts.items() if cause not in _NO_FILES)
