"""The ceiling: a bare libcurl multi loop that posts bodies of one size as fast as it can.

`python ceiling.py URL COUNT IN_FLIGHT BYTES [MIRROR]` prints posts per second. It signs, plans and records nothing, so this
is what a sender in Python could reach if everything but sending were free. With a MIRROR, it also reads each body's content
from the files of HEAD by `git cat-file`, as a sync does.
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator

import pycurl

HEADERS = [
    "Content-Type: application/json", "Expect:", "X-Docora-App-Id: app_0123456789abcdef01234567",
    "X-Docora-Timestamp: 1767225600", f"X-Docora-Signature: sha256={'0' * 64}", "X-Docora-Run-Id: run_0123456789abcdef",
    "X-Docora-Reason: resync", "X-Docora-Sequence: 1767225600000000", "webhook-id: msg_0123456789abcdef_1767225600000000",
    "webhook-timestamp: 1767225600", f"webhook-signature: v1,{'0' * 43}=",
]  # fmt: skip


def posts_per_second(url: str, count: int, in_flight: int, bodies: Iterator[bytes]) -> float:
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, in_flight)
    left, running = count, 0

    def start(curl: pycurl.Curl) -> None:
        nonlocal left, running
        curl.setopt(pycurl.POSTFIELDS, next(bodies))
        curl.setopt(pycurl.HTTPHEADER, HEADERS)
        multi.add_handle(curl)
        left, running = left - 1, running + 1

    handles = [pycurl.Curl() for _ in range(in_flight)]
    began = time.perf_counter()
    for curl in handles:
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.WRITEFUNCTION, len)
        start(curl)
    while running:
        multi.perform()
        _, ended, failed = multi.info_read()
        if failed:
            raise RuntimeError(failed[0][2])
        for curl in ended:
            multi.remove_handle(curl)
            running -= 1
            if left:
                start(curl)
        if not ended:
            multi.select(0.05)
    return count / (time.perf_counter() - began)


def files_of_head(mirror: str, size: int) -> Iterator[bytes]:
    """Yield the content of each file of HEAD, filled up to `size` bytes."""
    git = ("git", "--git-dir", mirror)
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--format=%(objectname)", "HEAD"], stdout=subprocess.PIPE, check=True
    )
    with subprocess.Popen([*git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for some in itertools.batched(listed.stdout.splitlines(keepends=True), 256):
            reader.stdin.write(b"".join(some))
            reader.stdin.flush()
            for _ in some:
                length = int(reader.stdout.readline().split()[2])
                yield reader.stdout.read(length + 1).ljust(size, b"x")


if __name__ == "__main__":
    address, number, at_once, length = sys.argv[1], *map(int, sys.argv[2:5])
    contents = files_of_head(sys.argv[5], length) if len(sys.argv) > 5 else itertools.repeat(b"x" * length)
    print(posts_per_second(address, number, at_once, contents))
