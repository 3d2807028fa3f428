"""Low-rank adapters on any part of a model."""
