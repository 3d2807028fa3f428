"""Training objectives of the core."""
