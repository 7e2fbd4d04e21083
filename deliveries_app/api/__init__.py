"""The REST API that client apps call (wire contract §2). Views translate; the verbs are in `deliveries_app.services`."""
