"""The image: it contains exactly what Docora needs and does not run as root."""

import subprocess
import sys
from pathlib import Path

from tests.support.deployment import PROJECT, copied, dockerfile
from tests.support.processes import Daemons
from tests.support.receiver import wait_for
from tests.support.shared import copy

BUILD, FINAL = dockerfile()


def values(stage, name: str) -> list[str]:
    return [instruction.value for instruction in stage if instruction.name == name]


def allowed_sources() -> set[str]:
    """Return the paths that .dockerignore allows. It begins with `*`, so only the `!` lines count."""
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}


def tracked() -> set[str]:
    names = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return set(names.splitlines())


def test_build_context_is_exactly_what_is_copied() -> None:
    sources = {source.rstrip("/") for stage in (BUILD, FINAL) for source, _ in copied(stage)}
    assert sources == allowed_sources()
    for source in sources:
        assert any(name == source or name.startswith(f"{source}/") for name in tracked()), source


def test_secrets_and_data_stay_out_of_the_build() -> None:
    assert allowed_sources().isdisjoint({".env", "var", ".git", "tests", "node_modules", ".venv"})


def test_packages_are_installed_with_their_hashes() -> None:
    [install] = [value for value in values(BUILD, "RUN") if "pip install" in value]
    assert "--require-hashes" in install
    assert "requirements.txt" in [source for source, _ in copied(BUILD)]
    assert any(value.startswith("--from=packages /opt/venv") for value in values(FINAL, "COPY"))


def test_image_runs_as_an_unprivileged_user() -> None:
    [user] = values(FINAL, "USER")
    uid = user.split(":")[0]
    assert int(uid) > 0
    order = [instruction.name for instruction in FINAL]
    assert order.index("USER") < order.index("CMD")
    assert values(FINAL, "VOLUME") == ["/data"]
    [setup] = [value for value in values(FINAL, "RUN") if "useradd" in value]
    assert f"--uid {uid} " in setup
    assert "--owner docora --group docora --mode 0700 /data" in setup
    assert " git " in setup


def test_images_have_official_names_and_versions() -> None:
    images = [value.split(" AS ")[0] for stage in (BUILD, FINAL) for value in values(stage, "FROM")]
    assert [image.partition("@")[0] for image in images] == ["python:3.13-slim", "python:3.13-slim"]


def test_version_is_set_in_the_last_layers() -> None:
    names = [value.split("=")[0] for value in values(FINAL, "ARG")]
    assert names == ["SOURCE_DATE_EPOCH", "DOCORA_BUILD_NUMBER", "DOCORA_BUILD_SHA", "DOCORA_BUILD_DATE"]
    names = names[1:]
    [variables] = values(FINAL, "ENV")
    assert all(f"{name}=${name}" in variables for name in names)
    order = [instruction.name for instruction in FINAL]
    assert order.index("ARG", order.index("ARG") + 1) > max(
        place for place, name in enumerate(order) if name in {"COPY", "RUN"}
    )


def test_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "Dockerfile"], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


def test_files_are_readable_whatever_their_mode_in_the_checkout() -> None:
    for value in values(FINAL, "COPY"):
        assert value.startswith(("--from=packages ", "--chmod=755 ")), value


def test_layers_do_not_depend_on_the_time_of_the_build() -> None:
    for command in (value for stage in (BUILD, FINAL) for value in values(stage, "RUN")):
        if "pip install" in command:
            assert "--no-compile" in command
        if "compileall" in command:
            assert "--invalidation-mode unchecked-hash" in command  # by default, they store the time of the source
        if "apt-get install" in command:
            cleaned = command.partition("rm -rf ")[2].split(" && ")[0].split()
            assert {"/var/cache/*", "/var/log/*", "/etc/shadow-"} <= set(cleaned)
    order = [(instruction.name, instruction.value.split("=")[0]) for instruction in FINAL]
    assert order.index(("ARG", "SOURCE_DATE_EPOCH")) < [name for name, _ in order].index("RUN")


def healthy(environment: dict[str, str]) -> bool:
    """Return whether the image's HEALTHCHECK succeeds."""
    [check] = [instruction for instruction in FINAL if instruction.name == "HEALTHCHECK"]
    options, _, command = check.value.partition("CMD ")
    assert "--interval=" in options
    words = type(check)("CMD", command).words
    assert words[0] == "python"  # there is no curl in the image
    return (
        subprocess.run([sys.executable, *words[1:]], env=environment, capture_output=True, timeout=20).returncode == 0
    )


def test_health_check_of_a_single_container(image: Daemons, migrated_sqlite: Path) -> None:
    [command] = [instruction.words for instruction in FINAL if instruction.name == "CMD"]
    assert command == ["python", "manage.py", "up"]
    del image.environment["DATABASE_URL"]
    data = Path(image.environment["DATA_DIR"])
    data.mkdir()
    copy(migrated_sqlite, data / "docora.sqlite3")
    assert not healthy(image.environment)
    up = image.start(*command[2:], "--workers", "1")
    wait_for(lambda: healthy(image.environment) or not up.running, 60, 0.3)
    assert up.running, image.logs()
    [stop] = values(FINAL, "STOPSIGNAL")
    assert stop == "SIGTERM"
    up.terminate()
    assert up.process.wait(30) == 0
    assert not healthy(image.environment)
    assert "Traceback" not in image.logs()
