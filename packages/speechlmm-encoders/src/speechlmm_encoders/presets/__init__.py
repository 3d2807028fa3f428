"""Configuration presets of the encoders."""
