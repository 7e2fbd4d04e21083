"""Filters for people: built into every template through `settings.TEMPLATES`."""

from django import template

register = template.Library()
