"""Training settings, as Hydra presets."""
