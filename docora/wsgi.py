"""The WSGI application, for `docora.server.web` or any other WSGI server."""

import os

from django.core.wsgi import get_wsgi_application

from docora.stack import roomy

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "docora.settings")

application = roomy(get_wsgi_application())
