"""What every task that asks in words has in common: languages, wordings, a system message, examples shown first."""
