"""Who performs an action. Every service takes an `Actor`, checks its permissions and records its name."""

import os
import pwd
import socket
from dataclasses import dataclass
from functools import cache

from django.contrib.auth import get_permission_codename, get_user_model
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from deliveries_app.models import ActorKind, App, AppRepository
from deliveries_app.permissions import Permission

_MAX_NAME = 150  # characters that columns store; user models other than Django's may allow more
_COMMAND, _SYSTEM = "command line", "Docora"


@dataclass(frozen=True)
class Actor:
    """A signed-in user, a client app that authenticated with its token, the command line, or Docora itself.

    `address` is the IP address that the request came from; for a command, the operating system's user and host; empty for
    Docora itself, unless it acts during a request.
    """

    name: str
    user: User | None = None
    app: App | None = None
    address: str = ""

    @classmethod
    def of_request(cls, request: HttpRequest) -> "Actor":
        """Return the signed-in user with the request's address, which `TrustedProxyMiddleware` has already corrected.

        Raises `PermissionDenied` unless the user is active staff.
        """
        return cls.of_user(request.user, address=request.META.get("REMOTE_ADDR", ""))

    @classmethod
    def of_user(cls, user: User | AnonymousUser, *, address: str = "") -> "Actor":
        """Return the user as an actor. Raises `PermissionDenied` unless the user is active staff."""
        if not isinstance(user, get_user_model()) or not (user.is_active and user.is_staff):
            raise PermissionDenied
        return cls(user.get_username()[:_MAX_NAME], user=user, address=address)

    @classmethod
    def of_app(cls, app: App, *, address: str = "") -> "Actor":
        return cls(f"app {app.name}", app=app, address=address)

    @classmethod
    def command(cls) -> "Actor":
        return cls(_COMMAND, address=_user_and_host())

    @classmethod
    def system(cls) -> "Actor":
        return cls(_SYSTEM)

    @property
    def kind(self) -> ActorKind:
        """The kind for the audit log. A user's name without the user means that the account has been deleted."""
        if self.app is not None:
            return ActorKind.APP
        if self.user is None and self.name in {_COMMAND, _SYSTEM}:
            return ActorKind.COMMAND if self.name == _COMMAND else ActorKind.SYSTEM
        return ActorKind.USER

    def require(self, *permissions: str) -> None:
        """Raise `PermissionDenied` unless the user has one of the permissions.

        Only users are checked here. The methods below also limit apps to their own rows; commands and Docora itself are trusted.
        """
        if self.user is not None and not any(self.user.has_perm(permission) for permission in permissions):
            raise PermissionDenied(f"You need the permission {' or '.join(permissions)}.")

    def require_active(self) -> None:
        """Raise `PermissionDenied` if the user was deactivated or deleted during the request, while a git host was asked."""
        users = get_user_model()._default_manager
        if self.user is not None and not users.filter(pk=self.user.pk, is_active=True, is_staff=True).exists():
            raise PermissionDenied("Your account was deactivated during the request.")

    def require_app(self, app: App | None, *permissions: str) -> None:
        """Raise `PermissionDenied` if an app acts on another app's data, and as `require` does, if permissions are given.

        `app` is None for the data of several apps.
        """
        if permissions:
            self.require(*permissions)
        if self.app is not None and (app is None or self.app.pk != app.pk):
            raise PermissionDenied("This belongs to another app.")

    def require_watches(self, watches: QuerySet[AppRepository], *permissions: str) -> None:
        """Do the same for all of these watches."""
        is_own = self.app is None or not watches.exclude(app=self.app).exists()
        self.require_app(self.app if is_own else None, *permissions)

    def require_watch(self, watch: AppRepository, *permissions: str) -> None:
        self.require_app(watch.app, *permissions)


@cache
def _user_and_host() -> str:
    """Return `olga@web-1`. A container's user may have no name."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"[:150]


def can_view(user: User | AnonymousUser, model: type[Model]) -> bool:
    """Return whether the user can view a model's rows. As in Django's admin, the change permission includes it."""
    names = (get_permission_codename(action, model._meta) for action in ("view", "change"))
    return any(user.has_perm(f"{model._meta.app_label}.{name}") for name in names)


def can_view_operations(user: User | AnonymousUser) -> bool:
    """Return whether the user can see bulk operations: with the view permission, or with one that starts operations."""
    sufficient = (Permission.VIEW_OPERATIONS, Permission.RESYNC, Permission.RETRY)
    return any(user.has_perm(permission) for permission in sufficient)
