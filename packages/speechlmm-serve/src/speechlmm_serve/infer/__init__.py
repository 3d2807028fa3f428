"""Batch inference over files."""
