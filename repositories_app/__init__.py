"""Git repositories: their URLs, mirrors and circuit breakers. This package knows nothing about client apps."""
