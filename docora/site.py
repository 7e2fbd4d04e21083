"""The admin site."""

from django.contrib import admin


class DocoraAdminSite(admin.AdminSite):
    site_header = "Docora"
    site_title = "Docora"
    index_title = "Overview"
