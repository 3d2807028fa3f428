"""Registries, typed configuration and the composite model of SpeechLMM."""
