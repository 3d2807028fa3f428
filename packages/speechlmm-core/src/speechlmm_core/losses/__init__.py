"""Losses that never hold a whole matrix of logits."""
