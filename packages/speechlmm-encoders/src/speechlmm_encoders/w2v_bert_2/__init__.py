"""The speech encoder w2v-BERT 2.0."""
