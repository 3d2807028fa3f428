"""Telephone lines."""
