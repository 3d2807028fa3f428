"""Added noise."""
