"""HTTP helpers that know no model: middleware, error responses, CSV export and the base of the REST API."""
