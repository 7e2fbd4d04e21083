"""Create the demo's bare git repositories, with plain git and without a checkout."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from deliveries_app.demo import contents

_FIRST_COMMIT = """commit refs/heads/%s
committer Docora Demo <demo@docora.invalid> 1767225600 +0000
data 15
Initial content
"""
"""With a fixed time, so that the commit ids are the same everywhere."""
_REPOSITORIES = {
    "acme/handbook": ("main", contents.handbook),
    "acme/assets": ("main", contents.assets),
    "acme/legacy": ("master", contents.legacy),
    "acme/website": ("main", contents.website),
}


def make_demo_repositories(directory: Path) -> None:
    """Create the demo's repositories as `directory/{owner}/{name}.git`.

    Existing ones are left alone. A new repository gets its final name only once it is complete.
    """
    for name, (branch, files) in _REPOSITORIES.items():
        target = directory / f"{name}.git"
        if target.exists():
            continue
        unfinished = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        git(unfinished, "init", "--quiet", "--bare", f"--initial-branch={branch}", "--template=", ".")
        added = (
            b"M 100644 inline %b\ndata %d\n%b\n" % (path.encode(), len(content), content)
            for path, content in files().items()
        )
        git(unfinished, "fast-import", "--quiet", stdin=[(_FIRST_COMMIT % branch).encode(), *added])
        unfinished.rename(target)


def git(repository: Path, *arguments: str, stdin: Iterable[bytes] = ()) -> bytes:
    """Run git in a bare repository and return its output. Raises CalledProcessError, whose `stderr` says why."""
    finished = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        env=git_environment(),
        input=b"".join(stdin),
        capture_output=True,
        check=True,
    )
    return finished.stdout


def git_environment(config: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which git uses only the given `config` and never prompts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    settings = {"gc.auto": "0", "maintenance.auto": "false"} | dict(config or {})
    for number, (name, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {"GIT_CONFIG_COUNT": str(len(settings))}
