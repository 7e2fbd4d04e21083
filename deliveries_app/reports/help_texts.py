"""Labels and hints for the engine's short cause codes."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.contrib.auth.models import AnonymousUser, User

from deliveries_app.models.root_causes import RootCause
from deliveries_app.permissions import Permission
from deliveries_app.planning.eligibility import REMARKS

LEFT_OUT: dict[str, tuple[str, str]] = {
    "symlink": (
        "Symbolic links",
        "Symbolic links are not sent. The file a link points to is sent if it is in the repository.",
    ),
    "submodule": (
        "Submodules",
        "A submodule is a separate repository. Its files are sent only if that repository is watched too.",
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
    "lfs_pointer": ("Git LFS pointers", "Sent as committed: the pointer, not the large file it points to."),
}
"""Cause → label and explanation."""


@dataclass(frozen=True)
class Hint:
    """What a failure means, and for users with all the permissions that it `needs`, what to do about it.

    `explains_group`: the explanation is for a group of failures only, because the error message of each one explains it better.
    """

    explanation: str
    advice: str = ""
    needs: tuple[Permission, ...] = ()
    explains_group: bool = False

    def for_user(self, user: User | AnonymousUser) -> str:
        """Return the hint for a group of failures, without advice that the user can't follow."""
        return " ".join(filter(None, [self.explanation, self._advice_for(user)]))

    def beside_error(self, user: User | AnonymousUser) -> str:
        """Return the hint to show beside the error message of one failure; empty if there is nothing to add."""
        return self._advice_for(user) if self.explains_group else self.for_user(user)

    def _advice_for(self, user: User | AnonymousUser) -> str:
        return self.advice if user.has_perms(self.needs) else ""


ROOT_HINTS: dict[str, Hint] = {
    RootCause.DNS: Hint(
        "The base URL's hostname doesn't resolve.",
        "Fix the URL in the app's settings or fix DNS, then retry.",
        (Permission.CHANGE_APPS, Permission.RETRY),
    ),
    RootCause.TLS: Hint(
        "The endpoint doesn't use TLS on this port, or its certificate has expired, doesn't match its hostname, is "
        "self-signed, or is sent without its intermediate certificates.",
        "Ask the app's operators to fix it, then retry.",
        (Permission.RETRY,),
    ),
    RootCause.CONNECTION: Hint(
        "Connections are refused or dropped, or the responses aren't valid HTTP. Check that the app is running and that this "
        "server can reach it. Docora retries automatically.",
        "If its address or port has changed, change the base URL, then retry.",
        (Permission.CHANGE_APPS, Permission.RETRY),
    ),
    RootCause.TIMEOUT: Hint(
        "The app can't be reached within 5 seconds, or takes longer than 30 seconds to respond. Check that it is running and "
        "that no firewall drops the packets. It should store each notification and respond immediately.",
        "If it is overloaded, lower its concurrent requests in its settings.",
        (Permission.CHANGE_APPS,),
    ),
    RootCause.REFUSED: Hint(
        "The app rejected the signature, or a proxy in front of it required authentication.",
        "Send a test ping from the app's page. If the app has lost its signing key, rotate it.",
        (Permission.CHANGE_APPS, Permission.REPLACE_SECRETS),
    ),
    RootCause.CLIENT_ERROR: Hint(
        "The app rejected the request. 404 often means a wrong base URL, 413 a size limit, and 429 a rate limit.",
        "Check the response, fix the app, then retry. If 410 has paused the app, resume it instead.",
        (Permission.CHANGE_APPS, Permission.RETRY),
    ),
    RootCause.SERVER_ERROR: Hint(
        "The app, or a proxy in front of it, returned a server error. Check its logs. Docora retries automatically.",
        "Once it's fixed, retry now.",
        (Permission.RETRY,),
    ),
    RootCause.UNEXPECTED: Hint(
        "Only 2xx responses count as accepted, and redirects are not followed.",
        "If the app has moved, change the base URL to the Location in its response, but without the last part of its path, "
        "such as /create, then retry.",
        (Permission.CHANGE_APPS, Permission.RETRY),
    ),
    RootCause.ADDRESS: Hint(
        "Docora doesn't connect to private addresses.",
        "Use a public base URL, or ask an administrator to add the network to ALLOWED_PRIVATE_NETWORKS, then retry.",
        (Permission.CHANGE_APPS, Permission.RETRY),
    ),
    RootCause.GIT_AUTH: Hint(
        "The git host rejected the token: it has expired, was revoked, or can't read this repository. If the error names a "
        "GitHub App, that app's key, permissions or installation are wrong.",
        "Replace a stored token on the watched repository's page. A sync then starts immediately.",
        (Permission.CHANGE_WATCHES,),
        explains_group=True,
    ),
    RootCause.GIT_NOT_FOUND: Hint(
        "The repository was moved, renamed or deleted, it is private, or its branch or tag is gone.",
        "Watch its new URL, stop watching it, add a token, or choose another branch or tag.",
        (Permission.WATCH, Permission.UNWATCH, Permission.CHANGE_WATCHES),
        explains_group=True,
    ),
    RootCause.GIT_HOST: Hint(
        "The git host is unreachable, too slow, returns errors, or limits requests. Docora retries automatically.",
        "Once it has recovered, retry now.",
        (Permission.RETRY,),
        explains_group=True,
    ),
    RootCause.GIT_CONTENT: Hint(
        "The repository is too large, its data is damaged, git failed, or its host sent something else, such as a maintenance "
        "page. Docora fetches damaged data again automatically. If this keeps happening, see Docora's log, and check the disk "
        "that holds REPOS_DIR.",
        "If the repository is too large, raise the limit or shrink it, then retry.",
        (Permission.RETRY,),
    ),
    RootCause.RULES: Hint(
        "Nothing is sent while .docoraignore, the ignore patterns or a transform can't be applied.",
        "Fix the problem in the error message, then retry.",
        (Permission.CHANGE_WATCHES, Permission.RETRY),
    ),
    RootCause.QUOTA: Hint(
        "The app's repositories would have more files or bytes than its quota allows. The client keeps what it has.",
        "Raise the quota in the app's settings or leave out files, then retry.",
        (Permission.CHANGE_APPS, Permission.CHANGE_WATCHES, Permission.RETRY),
    ),
    RootCause.INTERNAL: Hint(
        "An internal error, a full disk, a missing encryption key, or a killed worker.",
        "If the error message doesn't say what to do, check the worker's log, memory and disk. Then retry.",
        (Permission.RETRY,),
        explains_group=True,
    ),
}
"""Root cause → hint."""


def hint_of(cause: str) -> Hint:
    """Return the hint for a stored root cause. It is empty if this version doesn't know the cause."""
    return ROOT_HINTS.get(cause, Hint(""))


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
    return sum(count for cause, count in counts.items() if cause not in REMARKS)
