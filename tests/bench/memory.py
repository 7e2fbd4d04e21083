"""Measure the memory of a worker with repositories of 1,000 to 1,000,000 files and with one file of a gigabyte."""

from collections.abc import Iterator, Mapping

from tests.bench.lines import Line
from tests.bench.report import Chart, Row
from tests.bench.repositories import make_huge, make_large
from tests.bench.stage import Stage

LIMIT_MB = 40
SIZES = (1_000, 10_000, 100_000, 1_000_000)
FILE_BYTES = 400


def by_size(stage: Stage, jobs: dict[int, Mapping[str, float]], most: int) -> Iterator[Row]:
    """Run a first sync of each size up to `most` files, and store what each job took in `jobs`."""
    receiver = stage.receiver()
    for count in (size for size in SIZES if size <= most):
        repo = make_large(stage.git, f"acme/memory-{count}", count, FILE_BYTES)
        watch = stage.watch(stage.app(receiver), repo.name)
        jobs[count] = job = stage.job(watch, MAX_FILES=str(2 * count))  # which also counts folders
        assert receiver.counts()["posts"] == count
        yield Row(
            f"First sync of {count:,} files of {FILE_BYTES} bytes",
            f"{job['peak_mb']:.0f} MB above idle in {job['seconds']:.1f} s",
            f"≤ {LIMIT_MB} MB",
            job["peak_mb"] <= LIMIT_MB,
            f"idle {job['idle_mb']:.0f} MB; the largest git process {job['children_mb']:.0f} MB",
        )


def one_large_file(stage: Stage) -> Iterator[Row]:
    """Sync a file below the default size limit and one of 1 GiB, which takes some 2,700 chunks."""
    yield _one_file(stage, 100_000_000, "one file of 100 MB")
    yield _one_file(stage, 1 << 30, "one file of 1 GiB, MAX_FILE_BYTES raised")


def _one_file(stage: Stage, size: int, what: str) -> Row:
    receiver = stage.receiver()
    repo = make_huge(stage.git, f"acme/huge-{size}", size)
    watch = stage.watch(stage.app(receiver), repo.name)
    job = stage.job(watch, MAX_FILE_BYTES=str(2 * size))
    counts = receiver.counts()
    assert counts["bytes"] > size * 4 / 3
    return Row(
        f"First sync of {what}",
        f"{job['peak_mb']:.0f} MB above idle in {job['seconds']:.1f} s",
        f"≤ {LIMIT_MB} MB",
        job["peak_mb"] <= LIMIT_MB,
        f"{counts['posts']:,.0f} chunks, {counts['bytes'] / counts['seconds'] / 1e6:,.0f} MB/s on the wire; "
        f"the largest git process {job['children_mb']:.0f} MB",
    )


def chart(jobs: Mapping[int, Mapping[str, float]]) -> Chart:
    lines = [
        Line("seconds", [(float(count), job["seconds"]) for count, job in jobs.items()]),
        Line("MB above idle", [(float(count), max(1.0, job["peak_mb"])) for count, job in jobs.items()]),
    ]
    title = "First sync: time and memory of a worker by size of the repository"
    return Chart("repository-size", title, f"files of {FILE_BYTES} bytes", "s, MB", lines)
