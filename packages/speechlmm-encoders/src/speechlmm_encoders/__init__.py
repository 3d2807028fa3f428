"""Audio and video encoders of SpeechLMM, registered as plugins."""
