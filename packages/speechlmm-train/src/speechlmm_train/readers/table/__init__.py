"""The `table` dataset: CSV, TSV, JSON, JSONL and plain lines."""
