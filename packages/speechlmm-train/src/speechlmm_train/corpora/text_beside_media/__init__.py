"""Corpora with a text file beside each recording."""
