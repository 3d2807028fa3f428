"""Parallel text: sentences and their translations in files that correspond line by line."""
