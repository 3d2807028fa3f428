"""Corpora of long recordings with a list of segments, and texts that correspond to it line by line."""
