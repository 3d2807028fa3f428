"""The prepared index of a corpus: what was measured of its examples, in columns that are mapped into memory."""
