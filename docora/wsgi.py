"""The WSGI application, for `docora.server.web` or any other WSGI server."""

from django.core.wsgi import get_wsgi_application

from docora.conf.installation import choose_settings
from docora.stack import roomy
from docora.web import durations

choose_settings()

application = roomy(get_wsgi_application())
durations.flush_in_background()
