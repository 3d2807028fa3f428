"""Examples, manifests and datasets."""
