"""Plain text, learnt token by token, without a chat template."""
