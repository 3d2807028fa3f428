"""Adapters in sequence."""
