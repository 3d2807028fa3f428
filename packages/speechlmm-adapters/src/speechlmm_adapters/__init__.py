"""Length and modality adapters of SpeechLMM, registered as plugins."""
