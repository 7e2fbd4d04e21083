"""Checks of git, the git hosts and the outbound client.

Those that are registered are Django system checks. The others only warn, run a self-test or need the network, so only
`manage.py doctor` runs them.
"""

import re
import shutil
import subprocess
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Warning, register

from docora.http.addresses import blocked_reason
from docora.http.client import Cause, HttpClient, Request
from docora.http.egress import CHECK_PROXY, THROUGH_PROXY
from repositories_app.git.errors import CHECK_CERTIFICATE
from repositories_app.git.process import environment
from repositories_app.git.remote import new_client

MIN_GIT = (2, 38)  # has `cat-file --batch-command` and the security fixes around `safe.directory`
GIT_FIXES = "July 2025 (CVE-2025-48384, CVE-2025-48385)"
GIT_FIXED = (
    (2, 43, 7), (2, 44, 4), (2, 45, 4), (2, 46, 4), (2, 47, 3), (2, 48, 2), (2, 49, 1), (2, 50, 1),
)  # fmt: skip
"""For each maintained series, the first release with `GIT_FIXES` and all earlier security fixes.

Source: git's release notes (`Documentation/RelNotes/2.50.1` and others).
"""

_FORBIDDEN = {
    "127.0.0.1": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "localhost": "127.0.0.1 ::1",
    "[::1]": "::1",
    "[::ffff:127.0.0.1]": "127.0.0.1",
    "10.0.0.1": "10.0.0.1",
    "169.254.1.1": "169.254.1.1",
    "169.254.169.254": "169.254.169.254",
    "[fd00:ec2::254]": "fd00:ec2::254",
}
"""Maps a host as written in a URL to its addresses: loopback, private, link-local, and cloud metadata services."""


def git_version() -> tuple[int, ...] | None:
    """Return the version of the git on PATH, or None if there is none."""
    try:
        # git reads the user's configuration first, and refuses to say its version if that is invalid.
        command, env = ["git", "--version"], environment()
        output = subprocess.run(command, env=env, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", output)
    return tuple(int(part) for part in found.groups() if part) if found else None


@register
def check_git(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    version = git_version()
    if version is None:
        text = f"git is not installed. Docora needs git {_dotted(MIN_GIT)} or newer."
        hint = "Install it (apt install git) where the workers and the sweep can find it on their PATH."
        return [Error(text, hint=hint, id="docora.E001")]
    if version < MIN_GIT:
        text = f"git is {_dotted(version)}, but Docora needs {_dotted(MIN_GIT)} or newer."
        return [Error(text, hint="Upgrade git.", id="docora.E002")]
    return []


@register
def check_git_confinement(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check for the programs that limit git and end it with its worker. Debian and Red Hat always have them."""
    missing = [name for name in ("setpriv", "prlimit") if not shutil.which(name)]
    if not missing:
        return []
    text = f"Docora needs {' and '.join(missing)} to run git."
    hint = "Install util-linux where the workers and the sweep can find it on their PATH."
    return [Error(text, hint=hint, id="docora.E011")]


@register(deploy=True)
def check_git_hosts(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    if settings.ALLOWED_GIT_HOSTS:
        return []
    text = "ALLOWED_GIT_HOSTS is empty, so no repository can be watched."
    return [Error(text, hint="Set it to your git host, such as github.com.", id="docora.E009")]


def check_git_fixes() -> list[CheckMessage]:
    """Warn about a git without `GIT_FIXES`.

    This is not an error: Docora makes bare, shallow fetches and uses none of the vulnerable features.
    """
    version = git_version()
    if version is None or version < MIN_GIT:
        return check_git()
    newer = [release for release in GIT_FIXED if release > version]
    if not newer or any(version[:2] == release[:2] for release in GIT_FIXED if release <= version):
        return [Info(f"git {_dotted(version)} has the security fixes of {GIT_FIXES}.")]
    text = f"git {_dotted(version)} lacks the security fixes of {GIT_FIXES}, and possibly earlier ones."
    hint = (
        "Upgrade git, unless your distribution's changelog says that it has backported the fixes. Docora doesn't check out "
        "files or run hooks or submodules, so none of these vulnerabilities is known to affect it."
    )
    return [Warning(f"{text} Upgrade to {_dotted(newer[0])}.", hint=hint)]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_outbound_client() -> list[CheckMessage]:
    """Check that the outbound client refuses addresses that are not allowed.

    It does not dial an address that it refuses, so nothing leaves this machine.
    """
    networks = settings.ALLOWED_PRIVATE_NETWORKS
    hosts = [host for host, found in _FORBIDDEN.items() if all(blocked_reason(one, networks) for one in found.split())]
    if not hosts:
        text = "ALLOWED_PRIVATE_NETWORKS lets Docora connect to every private address."
        return [Warning(text, hint="Allow only the networks of your apps and git hosts.")]
    with new_client(max_connections=1) as client:
        dialled = [host for host in hosts if not _is_refused(client, host)]
    if not dialled:
        return [Info(f"Docora refuses to connect to {', '.join(hosts)}.")]
    risk = "anyone who registers an app or a repository can make Docora connect to them."
    text = f"Docora connects to {', '.join(dialled)}: {risk}"
    return [Error(text, hint="Stop Docora and report this bug.")]


def _is_refused(client: HttpClient, host: str) -> bool:
    """Return whether the client refuses to call the host. A spelling that does not resolve (`Cause.DNS`) counts as refused."""
    outcome = client.request(Request("HEAD", f"https://{host}/", connect_timeout=1.0, timeout=1.0))
    return outcome.cause in {Cause.REFUSED_ADDRESS, Cause.DNS}


def check_git_host_answers() -> list[CheckMessage]:
    """Check that the first allowed git host resolves and answers. Any status counts, because no repository is requested."""
    if not settings.ALLOWED_GIT_HOSTS:
        return []
    host = _authority(settings.ALLOWED_GIT_HOSTS[0])
    outcomes = []
    with new_client(max_connections=1) as client:
        for scheme in ("https", "http") if settings.ALLOW_HTTP else ("https",):
            outcome = client.request(Request("HEAD", f"{scheme}://{host}/", connect_timeout=5.0, timeout=8.0))
            if outcome.status is not None:
                milliseconds = f"{outcome.elapsed * 1000:.0f} ms"
                return [Info(f"The git host {host} responds over {scheme} in {milliseconds}.")]
            outcomes.append(outcome)
    hints = {
        Cause.DNS: "Check ALLOWED_GIT_HOSTS and this server's DNS.",
        Cause.REFUSED_ADDRESS: "If your git host is in a private network, add that network to ALLOWED_PRIVATE_NETWORKS.",
        Cause.TLS: CHECK_CERTIFICATE,
    }
    network = "Check the firewall."
    if THROUGH_PROXY in outcomes[-1].message:
        network = CHECK_PROXY
    elif not settings.EGRESS_PROXY:
        network += " If this server needs a proxy, set EGRESS_PROXY."
    if outcomes[-1].cause is Cause.CONNECT and settings.ALLOWED_GIT_HOSTS[0].endswith(":*"):
        untried = "ALLOWED_GIT_HOSTS allows every port of the host, and only the default one was tried."
        return [Warning(outcomes[0].message, hint=f"{untried} If git uses it: {network}")]
    hint = hints.get(outcomes[-1].cause or Cause.NETWORK, network)
    blocked = outcomes[-1].cause is Cause.REFUSED_ADDRESS
    text = f"Docora may not connect to the git host {host}. " if blocked else ""
    return [Error(text + outcomes[0].message, hint=hint)]


def _authority(entry: str) -> str:
    """Return an entry of ALLOWED_GIT_HOSTS as written in a URL, with the scheme's own port if it allows every port.

    The setting accepts IPv6 addresses without brackets.
    """
    entry = entry.removesuffix(":*")
    return f"[{entry}]" if entry.count(":") > 1 and not entry.startswith("[") else entry
