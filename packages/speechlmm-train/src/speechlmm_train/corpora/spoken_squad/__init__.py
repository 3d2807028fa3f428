"""Spoken-SQuAD: questions about passages that are read aloud."""
