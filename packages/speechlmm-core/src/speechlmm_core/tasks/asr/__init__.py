"""Speech recognition: audio in, its transcript out."""
