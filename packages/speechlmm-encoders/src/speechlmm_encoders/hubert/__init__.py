"""HuBERT's encoder of raw audio."""
