"""Learned queries over windows of frames."""
