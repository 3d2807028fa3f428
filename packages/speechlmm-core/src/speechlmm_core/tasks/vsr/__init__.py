"""Lip reading: a video without its sound in, what is said out."""
