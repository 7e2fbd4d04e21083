"""The public documentation at `/docs/`: quick start, references for webhooks and API, changes, and operations handbook."""
