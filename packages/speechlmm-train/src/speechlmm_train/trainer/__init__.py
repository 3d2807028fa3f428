"""Training: the output folder, a thin subclass of transformers' Trainer, and its callbacks."""
