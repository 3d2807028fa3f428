"""What the encoders of raw audio have in common: a stack of convolutions under a transformer, as in wav2vec 2.0."""
