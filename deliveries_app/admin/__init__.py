"""The Django admin. Views only translate between requests and `deliveries_app.services`."""

from deliveries_app.admin import (
    apps,
    audit_log,
    deliveries,
    drift,
    failed,
    github_apps,
    operations,
    queue,
    repositories,
    runs,
    users,
    watches,
)
