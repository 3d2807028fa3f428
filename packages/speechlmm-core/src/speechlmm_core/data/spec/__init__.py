"""Dataset specifications: which corpora are read, which parts of them, and for which task."""
