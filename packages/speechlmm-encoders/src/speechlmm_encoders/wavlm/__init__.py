"""WavLM's encoder of raw audio."""
