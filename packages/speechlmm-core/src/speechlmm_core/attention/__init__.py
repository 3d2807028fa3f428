"""Attention over several samples packed into one row."""
