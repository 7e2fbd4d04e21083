"""The fragments that pages poll, and the buttons beside them. HTML for htmx; the JSON twins are in `api`.

They stand outside the admin site, which answers whoever is signed out with a redirect to a page: that page would be put
into the middle of another one. `fragment.fragment` says who may see what instead.
"""
