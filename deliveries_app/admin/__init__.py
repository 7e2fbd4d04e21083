"""The Django admin. Views only translate between requests and `deliveries_app.services`."""

from deliveries_app.admin import (  # noqa: F401  registers the model admins
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
