"""Which examples make up which micro-batch, and the loader that reads them."""
