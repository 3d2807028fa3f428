"""SLURP: spoken commands with intents and slots."""
