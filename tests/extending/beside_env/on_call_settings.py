from docora.settings import *
from docora.settings import INSTALLED_APPS, MIDDLEWARE

INSTALLED_APPS = [*INSTALLED_APPS, "on_call"]
MIDDLEWARE = [*MIDDLEWARE, "on_call.middleware.OnCallMiddleware"]
ROOT_URLCONF = "on_call.urls"
