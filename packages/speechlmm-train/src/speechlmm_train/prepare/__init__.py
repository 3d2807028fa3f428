"""Prepares corpora: reads every file once, and writes what was found into an index."""
