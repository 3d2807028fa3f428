"""Training, evaluation and the demo of SpeechLMM."""
