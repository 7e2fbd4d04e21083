"""The ceiling: a bare libcurl multi loop that posts the same body as fast as it can.

`python ceiling.py URL COUNT IN_FLIGHT BYTES` prints posts per second. It signs, reads and records nothing, so this is what
a sender in Python could reach if everything but sending were free.
"""

import sys
import time

import pycurl

HEADERS = [
    "Content-Type: application/json", "Expect:", "X-Docora-App-Id: app_0123456789abcdef01234567",
    "X-Docora-Timestamp: 1767225600", f"X-Docora-Signature: sha256={'0' * 64}", "X-Docora-Run-Id: run_0123456789abcdef",
    "X-Docora-Reason: resync", "X-Docora-Sequence: 1767225600000000", "webhook-id: msg_0123456789abcdef_1767225600000000",
    "webhook-timestamp: 1767225600", f"webhook-signature: v1,{'0' * 43}=",
]  # fmt: skip


def posts_per_second(url: str, count: int, in_flight: int, size: int) -> float:
    body = b"x" * size
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, in_flight)
    left, running = count, 0

    def start(curl: pycurl.Curl) -> None:
        nonlocal left, running
        curl.setopt(pycurl.POSTFIELDS, body)
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


if __name__ == "__main__":
    print(posts_per_second(sys.argv[1], *map(int, sys.argv[2:5])))
