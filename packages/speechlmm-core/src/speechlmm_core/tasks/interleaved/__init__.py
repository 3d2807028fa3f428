"""Text of which spans are heard instead of read."""
