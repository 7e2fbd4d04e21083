"""Git itself rejects dangerous remotes that `parse_url`, the first line of defence, would not let through."""

from pathlib import Path

import pytest

from repositories_app.git import process as git
from repositories_app.git.exceptions import GitError
from tests.support.repositories import commit, init

REMOTES: dict[str, str] = {
    "an option": "--upload-pack=touch {folder}/pwned",
    "an option for the program": "--exec=touch {folder}/pwned",
    "ext": "ext::sh -c 'touch {folder}/pwned'",
    "ext without a shell": "ext::touch {folder}/pwned",
    "fd": "fd::7",
    "a file": "file://{folder}/there.git",
    "a folder": "{folder}/there.git",
    "ssh": "ssh://-oProxyCommand=touch%20{folder}/pwned/a/b",
    "ssh in its short form": "-oProxyCommand=touch {folder}/pwned:a/b",
    "the git protocol": "git://127.0.0.1/acme/widgets",
    "ftp": "ftp://127.0.0.1/acme/widgets",
    "a custom remote helper": "pwned::x",
}


@pytest.mark.parametrize("remote", REMOTES.values(), ids=REMOTES)
@pytest.mark.parametrize("command", ["ls-remote", "fetch"])
def test_git_rejects_every_transport_except_https(tmp_path: Path, remote: str, command: str) -> None:
    source, mirror = tmp_path / "there.git", tmp_path / "mirror.git"
    init(source)
    commit(source, {"secret": b"of this machine"})
    init(mirror)
    arguments = ["ls-remote", "--", remote.format(folder=tmp_path), "HEAD"]
    if command == "fetch":
        arguments = ["fetch", "--quiet", "--depth=1", "--", remote.format(folder=tmp_path), "+HEAD:refs/docora/x/run"]
    with pytest.raises(GitError) as raised:
        git.run(arguments, directory=mirror if command == "fetch" else None, timeout=20)
    assert str(raised.value).endswith(".")
    assert not (tmp_path / "pwned").exists()
    assert list((mirror / "objects").rglob("*.pack")) == []
