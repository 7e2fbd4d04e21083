"""The `docora` command line: its entry point and how commands print.

The commands themselves are in the `management` packages.
"""
