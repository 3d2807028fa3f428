"""Readers of datasets in common layouts: tables, folders, archives."""
