"""Speech translation: audio in one language in, text in another out."""
