"""The formats of dates, times and numbers on pages, by language (`FORMAT_MODULE_PATH`)."""
