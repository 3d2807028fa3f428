"""Fetching the base checkpoints that a model is built on."""
