"""Whisper's encoder: with its 30 s windows, and for audio of any length."""
