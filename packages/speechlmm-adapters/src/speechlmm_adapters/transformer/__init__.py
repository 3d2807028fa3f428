"""Transformer layers over frames."""
