"""Configuration presets of the core's components, as YAML files."""
