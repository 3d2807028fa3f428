"""An encoder for sensor readings: the template of a SpeechLMM plugin."""
