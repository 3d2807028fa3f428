"""Compression by connectionist temporal classification."""
