"""Tasks: how an example becomes a chat."""
