"""Samples as the model will see them."""
