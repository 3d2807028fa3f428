"""The `jsonl` dataset: manifests of one JSON object a line."""
