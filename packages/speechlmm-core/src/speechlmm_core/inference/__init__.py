"""Batched and streaming inference: evaluation, `infer`, chat and the library all use the one engine."""
