"""The intent of a spoken request."""
