"""Saving and loading checkpoints, atomically and with their provenance."""
