"""Every number in the handbook's section about sizing has a source: the benchmark's results, a setting, or a measurement.
Limits and times that other sections state are those of the code.

If `make bench` has found something else, correct the handbook.
"""

import functools
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db.backends.postgresql.features import DatabaseFeatures

from deliveries_app import scheduling
from deliveries_app.admin import confirmation
from deliveries_app.monitoring import server_checks
from deliveries_app.monitoring.alerts import channels, messages
from deliveries_app.monitoring.alerts.detect import EVERY_SECONDS, PATIENCE_SECONDS
from deliveries_app.monitoring.alerts.notify import _BASE_DELAY_SECONDS, GATHER_SECONDS
from deliveries_app.progress import runs
from deliveries_app.receiver import notification
from deliveries_app.reports import traffic
from deliveries_app.services import rollout, watching_many
from deliveries_app.sync import attempt, events, lease, responses
from deliveries_app.webhooks import endpoint_stats
from docora import backoff, disk
from docora.management.commands import up
from docora.redis import heartbeat
from docora.server import web, worker
from docora.web import access_log, durations
from repositories_app import checks as git_checks
from repositories_app import services as repositories
from tests.docora.test_docs import text_of

PROJECT = Path(__file__).resolve().parents[2]
TOLERANCE = 0.2
"""The share by which a figure in the handbook may differ from the last run of the benchmark, which differs from run to run."""

BENCH = [
    # (fragment of the handbook, work in RESULTS.md, figures in its row, in the order of those in the fragment)
    (r"adds (\d+) MB with 10,000 files", "First sync of 10,000 files of 400 bytes", r"(\d+) MB above idle"),
    (
        r"(\d+) MB with 1,000,000, \d+ MB with a file",
        "First sync of 1,000,000 files of 400 bytes",
        r"(\d+) MB above idle",
    ),
    (r"(\d+) MB with a file of 100 MB", "First sync of one file of 100 MB", r"(\d+) MB above idle"),
    (r"and (\d+) MB with one of 1 GiB", "First sync of one file of 1 GiB", r"(\d+) MB above idle"),
    (r"uses up to (\d+) MB with 100,000 files", "First sync of 100,000 files", r"largest git process (\d+) MB"),
    (r"and (\d+) MB with 1,000,000\.", "First sync of 1,000,000 files", r"largest git process (\d+) MB"),
    (r"takes (\d+) ms of CPU for its first sync", "30 files, 2 workers: first sync, CPU |", r"\| (\d+) ms for each"),
    (r"and (\d+) ms for a re-sync", "30 files, 2 workers: re-sync of all, CPU |", r"\| (\d+) ms for each"),
    (r"a file (\d+) µs", "First sync of 10,000 files of 4 KiB", r"(\d+) µs per file"),
    (r"with 100 progress bars takes ([\d.]+)% of a core", "100 open progress bars in one list", r"([\d.]+)% of a core"),
    (r"100 open pages with one bar each take (\d+)%", "100 open progress bars in as many", r"([\d.]+)% of a core"),
    (r"10,000 idle watched repositories takes ([\d.]+) s", "Check of 10,000 unchanged", r"\| ([\d.]+) s;"),
    (r", ([\d.]+) ms of CPU each", "Check of 10,000 unchanged", r"([\d.]+) ms of CPU for each"),
    (r"allow 400 files a second; (\d+) were measured", "First sync of 2,000 files", r"\| (\d+) files/s"),
    (
        r"The worker\. ?([\d,]+) files a second were measured",
        "First sync of 10,000 files of 4 KiB",
        r"\| ([\d,]+) files/s",
    ),
    (r"seconds per request, at most ([\d,]+)", "First sync of 10,000 files of 4 KiB", r"\| ([\d,]+) files/s"),
    (r"two cores did (\d+) first syncs", "30 files, 2 workers: first sync |", r"\| ([\d.]+)/s"),
    (r"(\d+) changes of one file", "30 files, 2 workers: one file changed in each |", r"\| ([\d.]+)/s"),
    (r"or (\d+) re-syncs a second", "30 files, 2 workers: re-sync of all |", r"\| ([\d.]+)/s"),
    (r"one worker did (\d+) re-syncs", "re-sync of 200 repositories with 30 files by 1, 2, 4", r"\| ([\d.]+)/s"),
    (r"with its work-horse uses (\d+) MB", "memory of a worker after 10,000", r"at most (\d+) MB"),
    (r"two did ([\d.]+) times the work of one", "Two workers on two repositories", r"\| ([\d.]+) × one worker"),
    (r"never more than its (\d) requests were in flight", "Four workers on four", r"\| (\d) in flight at most"),
    (r"(\d+) ms were measured with 10,000 files in the repository", "20 files changed", r"\| (\d+) ms and"),
    (r", (\d+) ms with 200,000", "20 files changed", r"and (\d+) ms \|"),
    (r"a push of one file arrives after (\d+) ms", "a push on an idle machine", r"median (\d+) ms"),
    (r"95 of 100 pushes arrived within ([\d.]+) s", "a push while 50 apps take 1 s", r"p95 ([\d.]+) s"),
    (r"Recording costs a worker (\d+) µs", "Announcing and recording a file, PostgreSQL", r"\| ([\d.]+) µs"),
    (
        r"of which the ([\d.]+) s above show|as the ([\d.]+) s above show",
        "Check of 10,000 unchanged",
        r"\| ([\d.]+) s;",
    ),
]

PREMISES = [
    # What was measured, not how it ended: sizes, numbers of apps, the machine. And arithmetic on figures above.
    r"2 cores and 25 GB, Linux 6\.18, Python 3\.13\.5 and git 2\.47\.3",
    r"with manage\.py up --workers 2", r"with 10,000 files,", r"with 1,000,000,", r"with a file of 100 MB", r"with one of 1 GiB",
    r"with 100,000 files, and", r"with 1,000,000\.", r"A repository of 30 files", r"with 100 progress bars",
    r"100 open pages with", r"after 32 concurrent clients", r"One pass over 10,000 idle",
    r"8 requests at 20 ms allow 400 files a second", r"8 concurrent requests and files of 4 KiB", r"repositories of 30 files",
    r"after 10,000 re-syncs", r"that take 20 ms", r"a push of 20 files", r"with 10,000 files in the repository",
    r"with 200,000", r"While 50 apps took a second per file, 10 didn't respond and 200 repositories were re-synced",
    r"95 of 100 pushes", r"takes 20 ms uses 4% of a core \(400 × 103 µs\)", r"with 32 concurrent clients",
    r"for 100,000 rows with paths of 44 characters", r"with blocks of 4 KiB", r"1,000 files of 4 KiB",
    r"Two watches of 1,000,000 files", r"pushes per second × 0\.1", r"0\.1 is the number of seconds",
]  # fmt: skip

MEASURED = [
    # Measured by hand in the way that the sentence states.
    r"\d+ MB of memory while idle, of which \d+ MB are its own \(Rss and Pss in /proc/…/smaps_rollup",
    r"The web process ?\d+ MB, and \d+ MB", r"The sweep ?\d+ MB", r"up itself ?\d+ MB",
    r"\d+ bytes of disk per file that an app holds, including indexes; \d+ after VACUUM FULL\. Measured with pg_table_size",
    r"take 1\.7 GB", r"[\d.]+ MB with two idle workers, and \d+ bytes per waiting job \(used_memory, 5,000 jobs\)",
    r"plus \d+ to \d+ kB for folders and locks \(everything that st_blocks counts, on ext4",
    r"take [\d.]+ MB if they can't be compressed, and [\d.]+ MB if they are similar text",
    r"A sweep has 1, or 2 with alerts or mail\.", r"\d+ for an up with two idle workers, \d+ while all threads of its web process are busy",
]  # fmt: skip


@functools.cache
def handbook() -> str:
    return text_of("/docs/operations/")


def section() -> str:
    text = handbook()
    return text[text.index("Processes share only PostgreSQL and Redis") : text.index("PostgreSQL is one server.")]


def row(work: str) -> str:
    lines = (PROJECT / "tests" / "bench" / "RESULTS.md").read_text().splitlines()
    [line] = [line for line in lines if work in line and "SQLite" not in line][:1]
    return line


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.mark.parametrize(("fragment", "work", "figure"), BENCH, ids=[work for _, work, _ in BENCH])
def test_figure_is_that_of_the_last_benchmark(fragment: str, work: str, figure: str) -> None:
    stated = re.search(fragment, section())
    measured = re.search(figure, row(work))
    assert stated, fragment
    assert measured, row(work)
    [told] = filter(None, stated.groups())
    assert number(told) == pytest.approx(number(measured[1]), rel=TOLERANCE), row(work)


def test_processor_is_that_of_the_last_benchmark() -> None:
    stated = re.search(r"come from make bench \((.+?)\)", section())
    measured = (PROJECT / "tests" / "bench" / "RESULTS.md").read_text().splitlines()[2]
    assert stated
    assert set(stated[1].split()) <= set(re.findall(r"\w+", measured)), measured


def test_figures_from_settings() -> None:
    text = section()
    assert f"({settings.SYNCS_PER_WORKER})" in text
    assert f"a pool of at most {settings.WEB_CONNECTIONS}." in text
    assert f"{settings.WEB_CONNECTIONS} × web processes + {settings.SYNCS_PER_WORKER} × workers + 2 × sweeps" in text
    assert f"with the default of {settings.LEASE_SECONDS:.0f}" in text
    assert "within 45 seconds" in text
    assert settings.LEASE_SECONDS + 15 == 45  # the lease, the sweep's interval and the next worker's start
    assert f"more than two workers of one up share {up._SYNCS}." in text
    assert f"more than two workers of one `up` share {up._SYNCS}." in (PROJECT / ".env.example").read_text()
    assert f"with up to 16 workers takes at most {settings.WEB_CONNECTIONS + up._SYNCS + 2}, so" in text


def test_every_number_has_a_source() -> None:
    rest = section()
    of_settings = [
        r"SYNCS_PER_WORKER at once \(\d+\)", r"a pool of at most \d+", r"\d+ × web processes \+ \d+ × workers \+ 2 × sweeps",
        r"within 45 seconds with the default of 30", r"the default of 100 is enough", r"default limit of 10,000",
        r"of one up share \d+", r"with up to 16 workers takes at most \d+, so",
        r"REPOS_MAX_BYTES=0", r"idle_in_transaction_session_timeout = '30s'", r"lock_timeout = '60s'",
    ]  # fmt: skip
    sources = [*(fragment for fragment, _, _ in BENCH), *MEASURED, *PREMISES, *of_settings]
    covered = [False] * len(rest)
    for source in sources:
        found = list(re.finditer(source, rest))
        assert found, f"not in the handbook: {source}"
        for match in found:
            covered[match.start() : match.end()] = [True] * (match.end() - match.start())
    without = [
        rest[max(0, match.start() - 40) : match.end() + 30]
        for match in re.finditer(r"\d", rest)
        if not covered[match.start()]
    ]
    assert without == []


# --- Elsewhere in the handbook ------------------------------------------------------------------------------------------

DEPLOY = PROJECT / "docora" / "deploy"
OF_THE_CODE: list[tuple[str, object, object]] = [
    # (sentence, what it says, in the unit of the code, and what the code does)
    ("Docora needs git 2.38 or newer", (2, 38), git_checks.MIN_GIT),
    ("PostgreSQL 15 or newer.", (15,), DatabaseFeatures.minimum_database_version),
    ("or Redis 7.0 or newer.", (7, 0), server_checks.MIN_REDIS),
    ("for at most ten seconds. New connections", 10, web.WebServer.drain_seconds),
    ("hands its repositories over within eight seconds", 8, worker.HAND_OVER_SECONDS),
    ("hasn't sent a whole request within 30 seconds", 30, web.Channel.request_seconds),
    ("While 500 requests wait for a thread, further ones get 503", 500, web._WAITING),
    ("Docora closes them after 150", 150, web._IDLE_SECONDS),
    ("counts arrive within five seconds", 5, durations._FLUSH_SECONDS),
    ("has been unavailable for a minute", 60, PATIENCE_SECONDS),
    ("looks for problems every half minute", 30, EVERY_SECONDS),
    (
        "when less than 1 GiB is free, or less than a tenth of a small disk",
        (2**30, 0.1),
        (disk.MIN_FREE_BYTES, disk.MIN_FREE_SHARE),
    ),
    ("the first ten names", 10, messages.SHOWN),
    ("within five minutes go into the next one", 5 * 60, GATHER_SECONDS),
    ("Docora retries after half a minute", 30, _BASE_DELAY_SECONDS),
    ("then less often, up to once an hour", 3600, backoff.MAX_WAIT_SECONDS),
    ("A 2xx within ten seconds acknowledges it", 10, channels._SECONDS),
    ("the share of the last 100 requests that were accepted", 100, endpoint_stats.KEPT),
    ("in each of the last 24 hours", 24, traffic.HOURS),
    ("paste up to 200 URLs", 200, watching_many.MAX_LINES),
    ("All checks together take at most 15 seconds", 15, watching_many.TOTAL_SECONDS),
    ("Ten requests in a row got no response", 10, responses.DOUBT_AFTER),
    ("or three more files, if the app has no /ping", 3, responses.CONTROL_PATHS),
    ("responded with 410 to three files of one attempt", 3, responses.GONE_AFTER),
    ("growing pauses, up to an hour", 3600, backoff.MAX_WAIT_SECONDS),
    ("failed or took more than 30 minutes", 30 * 60, rollout.CANARY_SECONDS),
    (
        "A re-sync for more than 10 apps or 1,000 repositories is confirmed by typing",
        (10, 1000),
        (confirmation.MANY_APPS, confirmation.MANY_REPOSITORIES),
    ),
    ("a clock that is more than five minutes off", 5 * 60, notification.TOLERANCE_SECONDS),
    ("warns if a clock differs from the database's by more than a second", 1, server_checks._SKEW_SECONDS),
    ("The interval varies by a tenth", 0.1, scheduling._JITTER),
    ("It tries one connection after 5 seconds", 5, repositories.HOST_BASE_DELAY_SECONDS),
    ("then doubles the interval, up to 5 minutes", 5 * 60, repositories.HOST_MAX_DELAY_SECONDS),
    ("of a repository, at most 100 and as many as the app's concurrent requests", 100, settings.RECORD_BATCH),
    ("the new worker first waits 30 seconds", 30, lease.HOLD_AFTER_TIMEOUT),
    ("reads HEAD again within half a minute", 30, max(attempt.LAG_SECONDS)),
    ("If more than a hundred end at once", 100, runs.LOGGED_ONE_BY_ONE),
    ("abandoned after a day", timedelta(days=1), events.GIVE_UP_AFTER),
    ("missing if it hasn't run for a day", 24 * 3600, heartbeat._TTL_SECONDS),
    ("(8 to 128 letters, digits, dots, hyphens and underscores)", "[A-Za-z0-9._-]{8,128}", access_log._REQUEST_ID.pattern),
    ("of the profile tls holds new requests for up to 30 seconds", ["30s"], re.findall(r"lb_try_duration (\w+)", (DEPLOY / "Caddyfile").read_text())),
    ("tries again every five seconds until the database", ["5"], re.findall(r"RestartSec=(\d+)", (DEPLOY / "docora-migrate.service").read_text())),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "said", "done"), OF_THE_CODE, ids=[sentence for sentence, _, _ in OF_THE_CODE])
def test_figure_is_that_of_the_code(sentence: str, said: object, done: object) -> None:
    assert sentence in handbook()
    assert said == done
