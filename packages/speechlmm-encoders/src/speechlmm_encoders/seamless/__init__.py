"""The speech encoder of SeamlessM4T v2."""
