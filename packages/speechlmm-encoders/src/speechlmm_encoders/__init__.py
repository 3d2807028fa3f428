"""Audio encoders of SpeechLMM, registered as plugins."""
