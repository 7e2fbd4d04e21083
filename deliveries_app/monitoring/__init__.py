"""Health, metrics, diagnostics and alerts."""
