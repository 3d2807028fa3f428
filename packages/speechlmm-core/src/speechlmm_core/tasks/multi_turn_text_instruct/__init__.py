"""Conversations in text, as a corpus of dialogues has them."""
