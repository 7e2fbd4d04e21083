"""The permissions that services and pages check, by what they let a user do."""

from enum import StrEnum


class Permission(StrEnum):
    VIEW_APPS = "deliveries_app.view_app"
    REGISTER_APPS = "deliveries_app.onboard_app"
    CHANGE_APPS = "deliveries_app.change_app"
    DELETE_APPS = "deliveries_app.delete_app"
    REPLACE_SECRETS = "deliveries_app.rotate_secret_app"
    VIEW_WATCHES = "deliveries_app.view_apprepository"
    WATCH = "deliveries_app.add_apprepository"
    CHANGE_WATCHES = "deliveries_app.change_apprepository"
    UNWATCH = "deliveries_app.delete_apprepository"
    RESYNC = "deliveries_app.resync_apprepository"
    RETRY = "deliveries_app.retry_apprepository"
    VIEW_QUEUE = "deliveries_app.view_queue"
    CONTROL_QUEUE = "deliveries_app.control_queue"
    VIEW_DELIVERIES = "deliveries_app.view_delivery"
    VIEW_PAYLOADS = "deliveries_app.view_payloads"
    VIEW_RUNS = "deliveries_app.view_syncrun"
    VIEW_OPERATIONS = "deliveries_app.view_bulkoperation"
    VIEW_AUDIT_LOG = "deliveries_app.view_auditentry"
    EXPORT_AUDIT_LOG = "deliveries_app.export_auditentry"
    VIEW_REPOSITORIES = "repositories_app.view_repository"
    ADD_GITHUB_APPS = "repositories_app.add_githubapp"
    CHANGE_GITHUB_APPS = "repositories_app.change_githubapp"
    DELETE_GITHUB_APPS = "repositories_app.delete_githubapp"
