"""Augmentation of training audio."""
