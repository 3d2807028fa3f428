"""Kaldi's filter-bank features, and what the encoders over them have in common."""
