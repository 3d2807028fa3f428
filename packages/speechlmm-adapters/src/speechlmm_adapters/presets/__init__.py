"""Configuration presets of the adapters."""
