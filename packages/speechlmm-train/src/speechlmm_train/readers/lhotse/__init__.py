"""The `lhotse` dataset: cuts, recordings with supervisions, and Shar."""
