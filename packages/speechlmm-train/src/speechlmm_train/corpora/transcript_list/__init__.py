"""Corpora with lists of transcripts: a line is the name of an utterance and what is said in it."""
