"""Changes of loudness."""
