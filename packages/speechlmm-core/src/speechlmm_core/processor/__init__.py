"""From chat messages to the tensors of a batch."""
