"""The `webdataset` dataset: tar shards."""
