"""Instructions in text, with or without a text that they are about."""
