"""Summaries of texts."""
