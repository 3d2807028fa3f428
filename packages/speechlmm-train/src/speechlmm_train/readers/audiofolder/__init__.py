"""The `audiofolder` dataset: files in folders, with a table or texts beside them."""
