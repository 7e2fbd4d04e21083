"""Bare shallow mirrors on disk: fetch, list trees, read blobs, and evict old mirrors. Start in `mirror.py`."""
