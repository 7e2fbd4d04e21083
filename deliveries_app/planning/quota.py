"""The quotas of an app's files: how many files and bytes all of its watched repositories may have together."""

from django.db.models import Sum

from deliveries_app.models import App, AppRepository
from deliveries_app.planning.plan import Plan, PlanRefused
from docora.text import format_bytes

CAUSE = "quota"
_REMEDY = (
    "Nothing was sent or deleted. Stop watching a repository or leave out files with patterns, or ask an administrator to "
    "raise the quota."
)


def require_room(watch: AppRepository, plan: Plan) -> bool:
    """Raise `PlanRefused` if the planned tree grows beyond the app's quota. Return whether to record the new totals now.

    A tree that doesn't grow is always sent, so lowering a quota never leaves an app with an old copy. Call this in the
    transaction that records the new totals: the app's row is locked until its end, so two syncs can't use the same free
    space.
    """
    has_quota = watch.app.file_limit is not None or watch.app.byte_limit is not None
    grows = plan.tree_files > watch.tree_files or plan.tree_bytes > watch.tree_bytes
    if not (has_quota and grows):
        return False
    app = App.objects.select_for_update(no_key=True).get(pk=watch.app_id)
    others = AppRepository.objects.filter(app=app, ended_at=None).exclude(pk=watch.pk)
    sums = others.aggregate(files=Sum("tree_files", default=0), size=Sum("tree_bytes", default=0))
    files, size = sums["files"] + plan.tree_files, sums["size"] + plan.tree_bytes
    if app.file_limit is not None and plan.tree_files > watch.tree_files and files > app.file_limit:
        text = f"With this commit, the app's repositories would have {files:,} files. Its quota is {app.file_limit:,}."
        raise PlanRefused(f"{text} {_REMEDY}", CAUSE)
    if app.byte_limit is not None and plan.tree_bytes > watch.tree_bytes and size > app.byte_limit:
        quota = format_bytes(app.byte_limit)
        text = f"With this commit, the app's repositories would have {format_bytes(size)}. Its quota is {quota}."
        raise PlanRefused(f"{text} {_REMEDY}", CAUSE)
    return True
