"""Summaries of speech."""
