"""Measure a check for differences of a large copy that has none."""

from collections.abc import Iterator

from tests.bench.report import Row
from tests.bench.repositories import make_large
from tests.bench.stage import Stage

FILES = 100_000


def equal_files(stage: Stage) -> Iterator[Row]:
    """Check a copy of 100,000 files, from the claim of the watch to the recorded result."""
    from deliveries_app.actors import Actor
    from deliveries_app.models import DriftState
    from deliveries_app.services import check_watch

    make_large(stage.git, "acme/drift", FILES, 400)
    receiver = stage.receiver()
    watch = stage.watch(stage.app(receiver, answers_verify=True), "acme/drift")
    stage.job(watch)
    receiver.counts()
    jobs = []
    for _ in range(3):
        check = check_watch(Actor.command(), watch)
        jobs.append(stage.job(watch))
        check.refresh_from_db()
        assert (check.state, check.compared) == (DriftState.EQUAL, FILES), check.message
    posts = receiver.counts()["posts"] / len(jobs)
    best = min(jobs, key=lambda job: job["seconds"])
    yield Row(
        f"Check for differences of {FILES:,} equal files",
        f"{best['seconds']:.2f} s, {posts:.0f} request",
        "≤ 1 s, 1 request",
        best["seconds"] <= 1 and posts == 1,
        f"the whole job, with `ls-refs`; {best['peak_mb']:.0f} MB above idle",
    )
