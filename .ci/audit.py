"""Look for known vulnerabilities in the pinned packages, and end with status 1 if there is one.

Without a connection to the vulnerability database, print one sentence and end with status 0: what can't be looked up doesn't
make `make check` fail, and it doesn't keep anyone waiting.

    .venv/bin/python .ci/audit.py [LOCK_FILE]
"""

import json
import re
import subprocess
import sys

CONNECT_SECONDS = 5
TOTAL_SECONDS = 120
_UNREACHABLE = re.compile(
    r"connection|connect timeout|read timed out|timed out|max retries|name resolution|proxyerror|sslerror|could not reach"
    r"|(?:50[0-9]|403|407|429) (?:client|server) error",
    re.IGNORECASE,
)


def main(lock: str = "requirements-dev.txt") -> int:
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", lock, "--require-hashes", "--disable-pip", "--format", "json",
        "--progress-spinner", "off", "--timeout", str(CONNECT_SECONDS),
    ]  # fmt: skip
    try:
        audit = subprocess.run(command, capture_output=True, text=True, timeout=TOTAL_SECONDS)
    except subprocess.TimeoutExpired:
        return skipped(f"it didn't answer within {TOTAL_SECONDS} seconds")
    try:
        packages = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):
        if _UNREACHABLE.search(audit.stderr):
            return skipped("it can't be reached")
        print(audit.stderr.strip(), file=sys.stderr)
        return 1
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        return skipped("it knows none of the packages, as if another server answered for it")
    found = [(package, flaw) for package in known for flaw in package["vulns"]]
    for package, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {flaw['id']}, fixed in {fixed}", file=sys.stderr)
    if unknown := len(packages) - len(known):
        print(f"{unknown} of {len(packages)} packages are not in the vulnerability database.", file=sys.stderr)
    if not found:
        print(f"No known vulnerability in {len(known)} of {len(packages)} packages.")
    return 1 if found else 0


def skipped(reason: str) -> int:
    print(f"Skipped the search for known vulnerabilities: the vulnerability database was asked, but {reason}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
