from django.http import HttpResponse
from django.urls import path

from docora.urls import *
from docora.urls import urlpatterns
from on_call.models import Person


def on_call(request):
    return HttpResponse("\n".join(f"{person.name} {person.phone}" for person in Person.objects.all()))


def fail(request):
    raise RuntimeError("This page always fails.")


urlpatterns = [path("on-call/", on_call), path("on-call/fail/", fail), *urlpatterns]
