"""Who does something: every verb takes an `Actor` first, checks what it may, and keeps its name."""

from dataclasses import dataclass

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet

from deliveries_app.models import App, AppRepository

RESYNC_PERMISSION = "deliveries_app.resync_apprepository"
RETRY_PERMISSION = "deliveries_app.retry_apprepository"
CONTROL_PERMISSION = "deliveries_app.control_queue"


@dataclass(frozen=True)
class Actor:
    """A signed-in user, a client app with its token, a person at the command line, or Docora itself."""

    name: str
    user: User | None = None
    app: App | None = None

    @classmethod
    def of_user(cls, user: User | AnonymousUser | AbstractBaseUser) -> "Actor":
        """Raises `PermissionDenied` for anybody who is not signed in as staff."""
        if not isinstance(user, User) or not (user.is_active and user.is_staff):
            raise PermissionDenied
        return cls(user.get_username(), user=user)

    @classmethod
    def of_app(cls, app: App) -> "Actor":
        return cls(f"app {app.name}", app=app)

    @classmethod
    def command(cls) -> "Actor":
        return cls("command line")

    @classmethod
    def system(cls) -> "Actor":
        return cls("Docora")

    def require(self, *permissions: str) -> None:
        """Users need one of the permissions; others are asked by `require_watch` or trusted."""
        if self.user is not None and not any(self.user.has_perm(permission) for permission in permissions):
            raise PermissionDenied(f"You need the permission {' or '.join(permissions)}.")

    def require_app(self, app: App | None) -> None:
        """An app may act for itself only; None stands for several apps."""
        if self.app is not None and (app is None or self.app.pk != app.pk):
            raise PermissionDenied("This belongs to another app.")

    def require_watches(self, watches: QuerySet[AppRepository]) -> None:
        if self.app is not None and watches.exclude(app=self.app).exists():
            self.require_app(None)

    def require_watch(self, watch: AppRepository) -> None:
        self.require_app(watch.app)

    @property
    def user_pk(self) -> int | None:
        return self.user.pk if self.user else None


def can_view_operations(user: AbstractBaseUser | AnonymousUser) -> bool:
    """Who may start an operation may follow it, whatever else they see."""
    enough = ("deliveries_app.view_bulkoperation", RESYNC_PERMISSION, RETRY_PERMISSION)
    return any(user.has_perm(permission) for permission in enough)  # type: ignore[union-attr]
