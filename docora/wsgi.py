"""The WSGI application, for `docora.server.web` or any other WSGI server."""

from importlib import import_module

import django
from django.conf import settings

from docora.conf.installation import choose_settings
from docora.stack import with_large_stack
from docora.web import durations
from docora.web.handler import Handler

choose_settings()

django.setup(set_prefix=False)
application = with_large_stack(Handler())
import_module(settings.ROOT_URLCONF)  # the first request does not wait for the import of every page
durations.flush_in_background()
