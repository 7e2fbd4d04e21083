"""The WSGI application, for `docora.server.web` or any other WSGI server."""

from importlib import import_module

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from docora.conf.installation import choose_settings
from docora.stack import with_large_stack
from docora.web import durations

choose_settings()

application = with_large_stack(get_wsgi_application())
import_module(settings.ROOT_URLCONF)  # the first request does not wait for the import of every page
durations.flush_in_background()
