"""Taking over checkpoints of the first SpeechLMM."""
