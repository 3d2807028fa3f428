"""The adapter that passes frames through."""
