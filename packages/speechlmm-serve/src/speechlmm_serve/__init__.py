"""Chat and batch inference for SpeechLMM."""
