"""The `parquet` dataset: Parquet and Arrow files, saved datasets, and the Hugging Face hub."""
