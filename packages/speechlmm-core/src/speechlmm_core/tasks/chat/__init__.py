"""Whole conversations, as a manifest gives them."""
