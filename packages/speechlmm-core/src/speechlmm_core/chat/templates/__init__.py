"""The pinned chat templates."""
