"""The REST API for client apps (wire contract §2). Views only translate between requests and `deliveries_app.services`."""
