"""The composite model."""
