"""`manage.py sign_in_link USER`: let in a user who cannot sign in with a password, a second factor or the provider."""

import logging
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.urls import reverse

from docora.cli.output import add_json, write_json
from docora.sign_in import links
from docora.text import can_be_id

logger = logging.getLogger(__name__)


class Command(BaseCommand):
    help = (
        "Prints a link that signs a user in once, without password, second factor or identity provider. It is valid for 10"
        " minutes, but only until the user signs in. Send it to this user only."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", metavar="USER", help="the username")
        add_json(parser, "user, url and valid_seconds")
        parser.epilog = "After a lost phone: sign_in_link anna"

    def handle(self, *args: Any, **options: Any) -> None:
        users, name = get_user_model(), options["user"]
        found = users._default_manager.filter(**{users.USERNAME_FIELD: name})
        user = found.first() if can_be_id(name) else None
        if user is None:
            raise CommandError(f"There is no user {name!r}.")
        if not user.is_active:
            raise CommandError(f"{name} is deactivated. Activate the user first.")
        links.link_created.send(sender=type(self), user=user)
        url = settings.PUBLIC_URL + reverse("sign_in_link", args=[links.make_token(user)])
        logger.warning("sign_in_link_created", extra={"user": user.get_username()})
        if options["json"]:
            write_json(self.stdout, {"user": user.get_username(), "url": url, "valid_seconds": links.MAX_AGE_SECONDS})
        else:
            self.stdout.write(url)
