"""HTTP helpers without models: middleware, error responses, CSV export and the base of the REST API."""
