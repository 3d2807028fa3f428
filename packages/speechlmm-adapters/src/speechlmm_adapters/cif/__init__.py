"""Continuous integrate-and-fire."""
