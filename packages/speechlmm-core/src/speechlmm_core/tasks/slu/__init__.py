"""Spoken language understanding: the intent of a request, and its slots."""
