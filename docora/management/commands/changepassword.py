import getpass
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.management.commands import changepassword
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from docora.text import can_be_id

_TRIES = 3


class Command(changepassword.Command):
    """Django's command, except that it saves no other column: while it waits for the password, rights may be taken away."""

    def handle(self, *args: Any, **options: Any) -> str:
        users, name = get_user_model(), options["username"] or getpass.getuser()
        found = users._default_manager.using(options["database"]).filter(**{users.USERNAME_FIELD: name})
        user = found.first() if can_be_id(name) else None
        if user is None:
            raise CommandError(f"There is no user {name!r}.")
        self.stdout.write(f"Changing the password of {name}.")
        for _ in range(_TRIES):
            password = getpass.getpass()
            if password != getpass.getpass("Password (again): "):
                self.stderr.write("The passwords don't match. Try again.")
                continue
            try:
                validate_password(password, user)
            except ValidationError as error:
                self.stderr.write("\n".join(error.messages))
                continue
            user.set_password(password)
            user.save(update_fields=["password"])
            return f"The password of {name} was changed."
        raise CommandError(f"The password of {name} was not changed, after {_TRIES} attempts.")
